//! What a proxy must change in the headers it passes on, and nothing else.

use http::header::{CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE};

use crate::access::TRAFFIC_TOKEN_HEADER;
use crate::serve::ClientConnection;

/// Headers that speak of one connection and must not travel to the next (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    http::header::PROXY_AUTHENTICATE,
    http::header::PROXY_AUTHORIZATION,
    http::header::TE,
    http::header::TRANSFER_ENCODING,
    UPGRADE,
];

/// The protocol a message wants to switch to: `Upgrade`, when `Connection` lists it.
pub(crate) fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = listed_in_connection(headers).any(|name| name.eq_ignore_ascii_case("upgrade"));
    wanted.then(|| headers.get(UPGRADE).cloned()).flatten()
}

/// Removes what belongs to one connection only, `Connection`'s own list included.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> =
        listed_in_connection(headers).filter_map(|name| HeaderName::try_from(name).ok()).collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        // `Connection: host` must not lose the name the application is addressed by.
        if name != HOST {
            headers.remove(name);
        }
    }
}

/// Writes the headers that make an upgrade one, after hop-by-hop headers were stripped.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Makes the headers of a client's request those of the request to the sandbox. `host` is the name the client used,
/// `mask` the one the program is to see instead.
pub(crate) fn prepare_request(
    headers: &mut HeaderMap,
    host: Option<&str>,
    mask: Option<&str>,
    client: Option<ClientConnection>,
) {
    let upgrade = upgrade_of(headers);
    strip_hop_by_hop(headers);
    // The server in front has answered "100 Continue" itself by the time the body is read.
    headers.remove(EXPECT);
    headers.remove(TRAFFIC_TOKEN_HEADER);
    if let Some(protocol) = upgrade {
        set_upgrade(headers, protocol);
    }
    let value = |text: &str| HeaderValue::from_str(text).ok();
    if let Some(host) = host.and_then(value) {
        headers.entry("x-forwarded-host").or_insert_with(|| host.clone());
        headers.insert(HOST, host);
    }
    if let Some(mask) = mask.and_then(value) {
        headers.insert(HOST, mask);
    }
    let encrypted = client.is_some_and(|client| client.encrypted);
    let scheme = HeaderValue::from_static(if encrypted { "https" } else { "http" });
    headers.entry("x-forwarded-proto").or_insert(scheme);
    if let Some(client) = client {
        let hops = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let hops: Vec<String> = hops.map(str::to_owned).chain([client.address.ip().to_string()]).collect();
        if let Ok(value) = HeaderValue::try_from(hops.join(", ")) {
            headers.insert("x-forwarded-for", value);
        }
    }
}

fn listed_in_connection(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)));
        pairs.collect()
    }

    fn client() -> Option<ClientConnection> {
        Some(ClientConnection { address: ([192, 0, 2, 1], 40000).into(), encrypted: false })
    }

    #[test]
    fn what_belongs_to_the_clients_connection_stays_there() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Once"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-once", "1"),
            ("expect", "100-continue"),
            ("x-access-token", "secret"),
            ("e2b-traffic-access-token", "for the gateway"),
            ("host", "8000-iabc.example.org"),
        ]);
        prepare_request(&mut headers, Some("8000-iabc.example.org"), None, client());
        let expected = map(&[
            ("x-access-token", "secret"),
            ("host", "8000-iabc.example.org"),
            ("x-forwarded-host", "8000-iabc.example.org"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-for", "192.0.2.1"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn an_upgrade_survives_and_forwarding_headers_of_a_proxy_in_front_are_kept() {
        let mut headers = map(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
        ]);
        prepare_request(&mut headers, Some("a.example.org"), None, client());
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9, 192.0.2.1");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn a_masked_host_is_what_the_program_sees_and_the_clients_is_still_told() {
        let mut headers = map(&[("host", "8000-iabc.example.org")]);
        prepare_request(&mut headers, Some("8000-iabc.example.org"), Some("localhost:8000"), client());
        assert_eq!(headers["host"], "localhost:8000");
        assert_eq!(headers["x-forwarded-host"], "8000-iabc.example.org");
    }

    #[test]
    fn an_upgrade_header_that_connection_does_not_list_is_no_upgrade() {
        let headers = map(&[("upgrade", "h2c")]);
        assert_eq!(upgrade_of(&headers), None);
    }
}

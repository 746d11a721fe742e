//! Which world a request is for: the control plane, or a port of a sandbox.
//!
//! The rules, first match wins:
//!
//! 1. The host is `{port}-{id}.{anything}` (or `{port}-{id}-{client id}.{anything}`, as old SDKs build it): the
//!    sandbox, whatever the path.
//! 2. The headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port` name a port other than the agent's: that port of the
//!    sandbox, whatever the path.
//! 3. The headers name the agent (or no port at all) but the path is one of the control plane's: the control plane.
//!    Some Python SDKs (2.7 to 2.25) send the routing headers on API calls.
//! 4. The headers name the agent: the agent. `GET /health` exists in both worlds and so goes here.
//! 5. Everything else: the control plane, which knows how to say 404.
//!
//! What looks like a sandbox's host name or header but is not well-formed is an error of the client (400), except on
//! the control plane's own paths: a server reached as `10-0-0-5.example.net` keeps its API.

use http::HeaderMap;
use torpor_types::SandboxId;

/// The port of the agent inside every sandbox.
pub const AGENT_PORT: u16 = 49983;

/// Header that names the sandbox a request is for.
pub const SANDBOX_ID_HEADER: &str = "e2b-sandbox-id";

/// Header that names the port inside the sandbox.
pub const SANDBOX_PORT_HEADER: &str = "e2b-sandbox-port";

/// First path segments that belong to the control plane. The agent has none of them.
const CONTROL_PLANE: &[&str] = &[
    "access-tokens",
    "admin",
    "api-keys",
    "default-templates",
    "events",
    "nodes",
    "sandboxes",
    "secrets",
    "snapshots",
    "teams",
    "templates",
    "v2",
    "v3",
    "volumecontent",
    "volumes",
];

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To the control plane's REST API.
    Api,
    /// To a port inside a sandbox.
    Sandbox {
        /// The sandbox.
        id: SandboxId,
        /// The TCP port inside it, never 0.
        port: u16,
    },
    /// Nowhere: it names a sandbox in a way that cannot be one. The text says what is wrong.
    Malformed(String),
}

/// Decides where a request goes. `host` is the authority of an HTTP/2 or absolute-form request, else the `Host`
/// header; `path` is the path as sent.
pub fn route(host: Option<&str>, headers: &HeaderMap, path: &str) -> Target {
    let target = match host.and_then(sandbox_of_host) {
        Some(Ok(target)) => return target,
        Some(Err(reason)) => Target::Malformed(reason),
        None => sandbox_of_headers(headers),
    };
    match target {
        Target::Sandbox { port, .. } if port != AGENT_PORT => target,
        _ if is_control_plane(path) => Target::Api,
        _ => target,
    }
}

fn is_control_plane(path: &str) -> bool {
    let first = path.strip_prefix('/').unwrap_or(path).split('/').next().unwrap_or_default();
    CONTROL_PLANE.contains(&first)
}

/// `None`: the host does not look like a sandbox's (digits, then a dash, in a name of several labels).
fn sandbox_of_host(host: &str) -> Option<Result<Target, String>> {
    let (label, _domain) = host.split_once('.')?;
    let (port, rest) = label.split_once('-')?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let parsed = parse_port(port).and_then(|port| Ok(Target::Sandbox { id: parse_id(rest)?, port }));
    Some(parsed.map_err(|reason| {
        format!(
            "the host name '{}' is not of the form {{port}}-{{sandbox id}}.{{domain}}: {reason}",
            shorten(host)
        )
    }))
}

fn sandbox_of_headers(headers: &HeaderMap) -> Target {
    let Some(id) = headers.get(SANDBOX_ID_HEADER) else { return Target::Api };
    let parsed = id.to_str().map_err(|_| "it is not plain text".to_owned()).and_then(parse_id);
    let id = match parsed {
        Ok(id) => id,
        Err(reason) => {
            return Target::Malformed(format!("the header E2b-Sandbox-Id cannot be used: {reason}"));
        }
    };
    let port = match headers.get(SANDBOX_PORT_HEADER) {
        None => Ok(AGENT_PORT),
        Some(port) => port.to_str().map_err(|_| "it is not plain text".to_owned()).and_then(parse_port),
    };
    match port {
        Ok(port) => Target::Sandbox { id, port },
        Err(reason) => Target::Malformed(format!("the header E2b-Sandbox-Port cannot be used: {reason}")),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    let text = text.trim();
    text.parse::<u16>()
        .ok()
        .filter(|port| *port != 0 && text.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(|| format!("'{}' is not a port (1 to 65535)", shorten(text)))
}

/// Takes `{id}` and `{id}-{client id}`. Host names have no case, so capitals are read as small letters.
fn parse_id(text: &str) -> Result<SandboxId, String> {
    let text = text.trim();
    let (id, client) = text.split_once('-').unwrap_or((text, "0"));
    let is_plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    if !is_plain(client) {
        return Err(format!("'{}' is not a sandbox id", shorten(text)));
    }
    id.to_ascii_lowercase().parse().map_err(|_| format!("'{}' is not a sandbox id", shorten(text)))
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn headers(id: Option<&str>, port: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(SANDBOX_ID_HEADER, HeaderValue::from_str(id).unwrap());
        }
        if let Some(port) = port {
            headers.insert(SANDBOX_PORT_HEADER, HeaderValue::from_str(port).unwrap());
        }
        headers
    }

    fn sandbox(id: &str, port: u16) -> Target {
        Target::Sandbox { id: id.parse().unwrap(), port }
    }

    #[test]
    fn the_routing_matrix_of_hosts_headers_and_paths() {
        let none = headers(None, None);
        let agent = headers(Some("iabc"), Some("49983"));
        let app = headers(Some("iabc"), Some("8000"));
        let table: &[(&str, &HeaderMap, &str, Target)] = &[
            ("127.0.0.1:3000", &none, "/sandboxes", Target::Api),
            ("127.0.0.1:3000", &none, "/health", Target::Api),
            ("127.0.0.1:3000", &none, "/nowhere", Target::Api),
            ("api.example.org", &none, "/v2/sandboxes", Target::Api),
            ("127.0.0.1:3000", &agent, "/health", sandbox("iabc", 49983)),
            ("127.0.0.1:3000", &agent, "/files", sandbox("iabc", 49983)),
            ("127.0.0.1:3000", &agent, "/process.Process/Start", sandbox("iabc", 49983)),
            ("127.0.0.1:3000", &agent, "/sandboxes/iabc/connect", Target::Api),
            ("127.0.0.1:3000", &agent, "/v2/sandboxes", Target::Api),
            ("127.0.0.1:3000", &app, "/sandboxes/mine", sandbox("iabc", 8000)),
            ("127.0.0.1:3000", &app, "/", sandbox("iabc", 8000)),
            ("8000-iabc.example.org", &none, "/sandboxes", sandbox("iabc", 8000)),
            ("8000-iabc.example.org:8443", &agent, "/", sandbox("iabc", 8000)),
            ("49983-iabc-00000000.e2b.test", &none, "/health", sandbox("iabc", 49983)),
            ("8000-IABC.Example.org", &none, "/", sandbox("iabc", 8000)),
            ("127.0.0.1", &headers(Some("iabc-00000000"), None), "/health", sandbox("iabc", 49983)),
            ("ip-10-0-0-1.example.org", &none, "/sandboxes", Target::Api),
            ("10-0-0-5.example.org", &none, "/sandboxes", Target::Api),
        ];
        for (host, headers, path, expected) in table {
            assert_eq!(&route(Some(host), headers, path), expected, "{host} {headers:?} {path}");
        }
    }

    #[test]
    fn what_names_no_possible_sandbox_is_refused_with_the_reason() {
        let none = headers(None, None);
        let cases = [
            route(Some("0-iabc.example.org"), &none, "/"),
            route(Some("99999-iabc.example.org"), &none, "/"),
            route(Some("8000-.example.org"), &none, "/"),
            route(Some("8000-i_b.example.org"), &none, "/"),
            route(Some("8000-iabc-0-0.example.org"), &none, "/"),
            route(Some("localhost"), &headers(Some("../x"), Some("80")), "/"),
            route(Some("localhost"), &headers(Some("iabc"), Some("http")), "/"),
            route(Some("localhost"), &headers(Some("iabc"), Some("+80")), "/"),
        ];
        insta::assert_debug_snapshot!(cases);
    }

    proptest! {
        #[test]
        fn a_sandbox_host_wins_over_every_header_and_path(
            port in 1u16.., id in "[a-z0-9]{1,40}", client in proptest::option::of("[a-z0-9]{1,8}"),
            domain in "[a-z]{1,8}(\\.[a-z]{2,5}){0,2}(:[0-9]{2,5})?", path in "/[a-z0-9/]{0,20}",
            other in "[a-z0-9]{1,20}", other_port in 1u16..,
        ) {
            let client = client.map(|c| format!("-{c}")).unwrap_or_default();
            let host = format!("{port}-{id}{client}.{domain}");
            let headers = headers(Some(&other), Some(&other_port.to_string()));
            prop_assert_eq!(route(Some(&host), &headers, &path), sandbox(&id, port));
        }

        #[test]
        fn routing_headers_alone_never_take_a_control_plane_path_from_the_api(
            id in "[a-z0-9]{1,40}", segment in proptest::sample::select(CONTROL_PLANE), rest in "(/[a-z0-9]{0,10}){0,3}",
        ) {
            let headers = headers(Some(&id), Some("49983"));
            prop_assert_eq!(route(Some("localhost:80"), &headers, &format!("/{segment}{rest}")), Target::Api);
        }

        #[test]
        fn without_routing_headers_a_host_that_starts_with_a_letter_is_always_the_api(
            host in "[a-z][a-z0-9-]{0,20}(\\.[a-z0-9-]{1,10}){0,3}", path in "\\PC{0,40}",
        ) {
            prop_assert_eq!(route(Some(&host), &headers(None, None), &path), Target::Api);
        }

        #[test]
        fn no_host_header_or_path_makes_routing_fail(
            host in proptest::option::of("\\PC{0,60}"), id in "[ -~]{0,40}", port in "[ -~]{0,10}", path in "\\PC{0,60}",
        ) {
            let target = route(host.as_deref(), &headers(Some(&id), Some(&port)), &path);
            if let Target::Sandbox { port, .. } = target {
                prop_assert_ne!(port, 0);
            }
        }
    }
}

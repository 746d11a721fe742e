//! The first bytes of a connection: which protocol it is, and for which host.

use rustls::server::Acceptor;
use torpor_types::DomainName;

/// More than any sensible opening has; what is longer is taken for something else.
pub(crate) const MAX_OPENING_BYTES: usize = 64 << 10;
/// More header lines than common servers accept.
const MAX_HEADERS: usize = 128;
/// First byte of a TLS record with a handshake in it.
const TLS_HANDSHAKE: u8 = 22;
/// Longest HTTP method that is looked for, in bytes.
const MAX_METHOD_BYTES: usize = 24;

/// How a connection begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Opening {
    /// A TLS ClientHello.
    Tls {
        /// The server name it asks for.
        name: Option<DomainName>,
        /// Whether HTTP may follow, as far as the client says.
        is_http: bool,
    },
    /// A request of HTTP/1.
    Http {
        /// The host it is for.
        name: Option<DomainName>,
    },
    /// Something else.
    Other,
}

// === impl Opening ===

impl Opening {
    /// The host it names.
    pub(crate) fn name(&self) -> Option<&DomainName> {
        match self {
            Opening::Tls { name, .. } | Opening::Http { name } => name.as_ref(),
            Opening::Other => None,
        }
    }

    /// Whether what follows is HTTP, or may be inside of TLS.
    pub(crate) fn is_http(&self) -> bool {
        match self {
            Opening::Tls { is_http, .. } => *is_http,
            Opening::Http { .. } => true,
            Opening::Other => false,
        }
    }

    /// What `bytes` are the beginning of; `None` if more are needed to tell.
    pub(crate) fn of(bytes: &[u8]) -> Option<Opening> {
        let opening = match bytes.first()? {
            &TLS_HANDSHAKE => tls(bytes),
            byte if byte.is_ascii_uppercase() => http(bytes),
            _ => Some(Opening::Other),
        };
        match opening {
            None if bytes.len() >= MAX_OPENING_BYTES => Some(Opening::Other),
            opening => opening,
        }
    }
}

fn tls(bytes: &[u8]) -> Option<Opening> {
    let mut acceptor = Acceptor::default();
    let mut unread = bytes;
    while !unread.is_empty() {
        // Reading from memory fails only if the message is too large.
        match acceptor.read_tls(&mut unread) {
            Ok(0) | Err(_) => return Some(Opening::Other),
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let name = hello.server_name().and_then(|name| name.parse().ok());
                let is_http = hello
                    .alpn()
                    .is_none_or(|mut protocols| protocols.any(|name| matches!(name, b"h2" | b"http/1.1")));
                return Some(Opening::Tls { name, is_http });
            }
            Err(_) => return Some(Opening::Other),
        }
    }
    None
}

fn http(bytes: &[u8]) -> Option<Opening> {
    let method_end = bytes.iter().position(|byte| *byte == b' ');
    let method = &bytes[..method_end.unwrap_or(bytes.len())];
    if method.len() > MAX_METHOD_BYTES
        || !method.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-')
    {
        return Some(Opening::Other);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => None,
        Err(_) => Some(Opening::Other),
        // Asks for a tunnel, which is none of ours to open.
        Ok(httparse::Status::Complete(_)) if request.method == Some("CONNECT") => Some(Opening::Other),
        Ok(httparse::Status::Complete(_)) => Some(Opening::Http { name: host(&request) }),
    }
}

/// The host of a request. `None` also if it names two: then servers disagree about which one counts.
fn host(request: &httparse::Request<'_, '_>) -> Option<DomainName> {
    let mut named = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let header = named.next().map(|header| std::str::from_utf8(header.value).unwrap_or_default());
    if named.next().is_some() {
        return None;
    }
    let in_line = request.path.and_then(|target| target.split_once("://")).map(|(_, rest)| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        &rest[..end]
    });
    match (in_line.map(name_of), header.map(name_of)) {
        (Some(in_line), Some(header)) if in_line != header => None,
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => None,
    }
}

/// The name in `name` or `name:port`.
pub(crate) fn name_of(authority: &str) -> Option<DomainName> {
    let authority = authority.trim();
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return None,
        None => authority,
    };
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn hello(name: &'static str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn named(name: &str) -> Option<DomainName> {
        Some(name.parse().unwrap())
    }

    #[test]
    fn a_tls_connection_is_for_the_server_name_it_asks_for() {
        for (bytes, expected) in [
            (hello("api.Example.com", &[]), Opening::Tls { name: named("api.example.com"), is_http: true }),
            (hello("a.com", &[b"h2", b"http/1.1"]), Opening::Tls { name: named("a.com"), is_http: true }),
            (hello("a.com", &[b"postgresql"]), Opening::Tls { name: named("a.com"), is_http: false }),
            (hello("192.0.2.1", &[]), Opening::Tls { name: None, is_http: true }),
        ] {
            for cut in [1, 2, 5, 6, bytes.len() / 2, bytes.len() - 1] {
                assert_eq!(Opening::of(&bytes[..cut]), None, "{cut} of {}", bytes.len());
            }
            assert_eq!(Opening::of(&bytes), Some(expected));
        }
    }

    #[test]
    fn a_client_hello_in_pieces_of_records_is_put_together() {
        let whole = hello("example.com", &[]);
        let message = &whole[5..];
        let mut bytes = Vec::new();
        for piece in message.chunks(20) {
            bytes.extend_from_slice(&[22, 3, 1, 0, u8::try_from(piece.len()).unwrap()]);
            bytes.extend_from_slice(piece);
        }
        assert_eq!(Opening::of(&bytes).unwrap().name(), named("example.com").as_ref());
    }

    #[test]
    fn a_request_is_for_the_host_it_names_if_it_names_one() {
        for (request, name) in [
            ("GET / HTTP/1.1\r\nHost: Example.com\r\n\r\n", Some("example.com")),
            ("POST /x HTTP/1.1\r\nA: b\r\nhost:a.example.com:8080\r\n\r\nbody", Some("a.example.com")),
            ("GET http://a.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n", Some("a.com")),
            ("GET http://a.com HTTP/1.0\r\n\r\n", Some("a.com")),
            ("GET http://evil.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n", None),
            ("GET http://a.com@evil.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a.com\r\nHost: evil.com\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", None),
            ("GET / HTTP/1.0\r\n\r\n", None),
        ] {
            let name = name.and_then(named);
            assert_eq!(Opening::of(request.as_bytes()), Some(Opening::Http { name }), "{request}");
            assert_eq!(Opening::of(&request.as_bytes()[..16]), None, "{request}");
        }
    }

    #[test]
    fn anything_else_has_no_name() {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            b"EHLO example.com\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"CONNECT a.com:443 HTTP/1.1\r\nHost: a.com\r\n\r\n",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            b"get / HTTP/1.1\r\nHost: a.com\r\n\r\n",
            b"\x16\x03\x01\x00\x05hello",
            b"ABSURDLY-LONG-METHOD-THAT-IS-NONE",
        ] {
            assert_eq!(Opening::of(bytes), Some(Opening::Other), "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(Opening::of(b""), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..600), first in "(GET |\u{16}\u{3}\u{1})?") {
            let _ = Opening::of(&[first.as_bytes(), &bytes].concat());
        }

        #[test]
        fn what_is_decided_stays_decided_when_more_bytes_come(request in "GET / HTTP/1.1\r\n(Host: [a-z]{1,5}\\.com\r\n)?([a-z]{1,3}: x\r\n){0,2}\r\n", more: Vec<u8>) {
            let first = Opening::of(request.as_bytes());
            prop_assert!(first.is_some());
            prop_assert_eq!(Opening::of(&[request.as_bytes(), &more].concat()), first);
        }
    }
}

//! Which sandbox and port a request is for, as the gateway reads it from host and headers.
//!
//! The input is up to four lines: host, `E2b-Sandbox-Id`, `E2b-Sandbox-Port`, path. An empty line is one that is not
//! there.

use http::{HeaderMap, HeaderValue};
use torpor_gateway::{Target, route as decide};

const AGENT_PORT: u16 = 49983;

/// The target, see the module's documentation.
pub fn route(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n').map(Some).chain(std::iter::repeat(None));
    let mut line = || lines.next().flatten().filter(|line| !line.is_empty());
    let text = |line: Option<&[u8]>| line.map(|line| String::from_utf8_lossy(line).into_owned());
    let host = text(line());
    let mut headers = HeaderMap::new();
    for name in ["e2b-sandbox-id", "e2b-sandbox-port"] {
        if let Some(Ok(value)) = line().map(HeaderValue::from_bytes) {
            headers.insert(name, value);
        }
    }
    let path = text(line()).unwrap_or_else(|| "/".to_owned());
    let target = decide(host.as_deref(), &headers, &path);

    // A well-formed host decides alone.
    if let Some((port, id)) = host.as_deref().and_then(plain_host) {
        match &target {
            Target::Sandbox { id: found, port: found_port } => {
                assert_eq!((found.as_str(), *found_port), (id.as_str(), port), "{host:?}");
            }
            other => panic!("{other:?} for {host:?}"),
        }
    }
    match &target {
        Target::Sandbox { id, port } => {
            assert_ne!(*port, 0);
            assert!(id.as_str().bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()));
            // Written down again it leads to the same place, by either road.
            let written = format!("{port}-{id}.example.org");
            assert_eq!(decide(Some(&written), &HeaderMap::new(), &path), target);
            let by_headers = HeaderMap::from_iter([
                (http::HeaderName::from_static("e2b-sandbox-id"), id.as_str().parse().unwrap()),
                (http::HeaderName::from_static("e2b-sandbox-port"), port.to_string().parse().unwrap()),
            ]);
            assert_eq!(decide(Some("localhost"), &by_headers, "/files"), target);
            if *port == AGENT_PORT {
                assert_eq!(decide(Some("localhost"), &by_headers, "/sandboxes"), Target::Api);
            }
        }
        Target::Malformed(reason) => {
            assert!(reason.chars().count() < 400, "a reason repeats all it was given")
        }
        Target::Api => {}
    }
}

/// `{port}-{id}[-{client}].{anything}`, read the plainest way.
fn plain_host(host: &str) -> Option<(u16, String)> {
    let (label, _) = host.split_once('.')?;
    let parts: Vec<&str> = label.split('-').collect();
    let (port, id) = match parts[..] {
        [port, id] => (port, id),
        [port, id, client] if is_plain(client) => (port, id),
        _ => return None,
    };
    let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| port.parse::<u32>().unwrap()).and_then(|port| u16::try_from(port).ok())?;
    let sensible = port != 0 && is_plain(id) && id.len() <= 64;
    sensible.then(|| (port, id.to_ascii_lowercase()))
}

fn is_plain(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

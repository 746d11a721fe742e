//! Who may reach a sandbox, and whose request may resume it.
//!
//! Ports of programs are open to everybody, unless the sandbox was created without public traffic: then a request has
//! to show the *traffic access token*. The agent's port has a token of its own, which the agent checks; only while the
//! sandbox is paused is there no agent to do so, and a request that would resume it is checked here.

use http::{HeaderMap, Method, Request, Uri};
use subtle::ConstantTimeEq;
use torpor_envd_api::http::{ACCESS_TOKEN_HEADER, FilesQuery};
use torpor_envd_api::signature::{Operation, sign};

use crate::refusal::Refusal;
use crate::route::AGENT_PORT;

/// Header with the traffic access token. It is for the gateway, and never reaches the program behind it.
pub const TRAFFIC_TOKEN_HEADER: &str = "e2b-traffic-access-token";

/// What the gateway has to know of a sandbox before a request goes near it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// The token that requests to ports of programs have to show; `None` lets everybody in.
    pub traffic_token: Option<String>,
    /// The token its agent demands; `None` if it demands none.
    pub agent_token: Option<String>,
    /// The `Host` header that programs see, with `${PORT}` for the port; `None` leaves the client's.
    pub mask_request_host: Option<String>,
}

/// Whether a request has shown enough to resume a paused sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayResume {
    /// It has.
    Yes,
    /// It has not: the agent would refuse it.
    No,
}

/// A request for one file whose URL holds a signature instead of a token, and possibly no sandbox either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedFile {
    query: FilesQuery,
    operation: Operation,
    signature: String,
}

// === impl Access ===

impl Access {
    /// Refuses a request that may not reach the port, and says whether one that may could also resume the sandbox.
    pub(crate) fn check<B>(&self, port: u16, request: &Request<B>) -> Result<MayResume, Refusal> {
        if port == AGENT_PORT {
            return Ok(self.check_for_agent(request));
        }
        let Some(token) = &self.traffic_token else { return Ok(MayResume::Yes) };
        match request.headers().get(TRAFFIC_TOKEN_HEADER) {
            None => Err(Refusal::TrafficTokenMissing),
            Some(shown) if is_same(shown.as_bytes(), token) => Ok(MayResume::Yes),
            Some(_) => Err(Refusal::TrafficTokenInvalid),
        }
    }

    fn check_for_agent<B>(&self, request: &Request<B>) -> MayResume {
        let Some(token) = &self.agent_token else { return MayResume::Yes };
        let shows_token = |headers: &HeaderMap| {
            headers.get(ACCESS_TOKEN_HEADER).is_some_and(|shown| is_same(shown.as_bytes(), token))
        };
        let (method, path) = (request.method(), request.uri().path());
        // What the agent answers without a token.
        let needs_none = method == Method::OPTIONS
            || (path == "/health" && (method == Method::GET || method == Method::HEAD));
        let is_signed = || {
            SignedFile::of(method, request.uri()).is_some_and(|file| file.is_by(token) && !file.has_expired())
        };
        if needs_none || shows_token(request.headers()) || is_signed() {
            MayResume::Yes
        } else {
            MayResume::No
        }
    }

    /// The `Host` header for the program on `port`, if it is to be another than the client's.
    pub(crate) fn masked_host(&self, port: u16) -> Option<String> {
        let mask = self.mask_request_host.as_ref().filter(|_| port != AGENT_PORT)?;
        Some(mask.replace("${PORT}", &port.to_string()))
    }
}

// === impl SignedFile ===

impl SignedFile {
    /// What is signed, if this is such a request.
    pub(crate) fn of(method: &Method, uri: &Uri) -> Option<SignedFile> {
        if uri.path() != "/files" {
            return None;
        }
        let operation = match *method {
            Method::GET | Method::HEAD => Operation::Read,
            Method::POST => Operation::Write,
            _ => return None,
        };
        let mut query: FilesQuery = serde_urlencoded::from_str(uri.query()?).ok()?;
        let signature = query.signature.take()?;
        Some(SignedFile { query, operation, signature })
    }

    /// Whether whoever holds this token signed it.
    pub fn is_by(&self, token: &str) -> bool {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let (path, user) = (part(&self.query.path), part(&self.query.username));
        let expected = sign(&path, self.operation, &user, token, self.query.signature_expiration);
        is_same(self.signature.as_bytes(), &expected)
    }

    fn has_expired(&self) -> bool {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.query.signature_expiration.is_some_and(|at| u64::try_from(at).unwrap_or(0) < now)
    }
}

/// Takes the same time wherever the two differ.
fn is_same(shown: &[u8], expected: &str) -> bool {
    shown.ct_eq(expected.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOKEN: &str = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";

    fn request(method: &str, uri: &str, header: Option<(&str, &str)>) -> Request<()> {
        let builder = Request::builder().method(method).uri(uri);
        header
            .into_iter()
            .fold(builder, |builder, (name, value)| builder.header(name, value))
            .body(())
            .unwrap()
    }

    fn private() -> Access {
        Access {
            traffic_token: Some("traffic".to_owned()),
            agent_token: Some(TOKEN.to_owned()),
            mask_request_host: Some("localhost:${PORT}".to_owned()),
        }
    }

    #[test]
    fn ports_of_programs_want_the_traffic_token_and_nothing_else() {
        let check = |header| private().check(8000, &request("GET", "/", header));
        assert_eq!(check(Some((TRAFFIC_TOKEN_HEADER, "traffic"))), Ok(MayResume::Yes));
        assert_eq!(check(None), Err(Refusal::TrafficTokenMissing));
        assert_eq!(check(Some((ACCESS_TOKEN_HEADER, TOKEN))), Err(Refusal::TrafficTokenMissing));
        for wrong in ["", "traffi", "traffic ", "Traffic", TOKEN] {
            assert_eq!(
                check(Some((TRAFFIC_TOKEN_HEADER, wrong))),
                Err(Refusal::TrafficTokenInvalid),
                "{wrong}"
            );
        }
        assert_eq!(Access::default().check(8000, &request("GET", "/", None)), Ok(MayResume::Yes));
    }

    #[test]
    fn the_agents_port_wants_no_traffic_token_and_resumes_for_what_the_agent_would_answer() {
        let table = [
            ("POST", "/process.Process/Start", Some((ACCESS_TOKEN_HEADER, TOKEN)), MayResume::Yes),
            ("POST", "/process.Process/Start", Some((ACCESS_TOKEN_HEADER, "other")), MayResume::No),
            ("POST", "/process.Process/Start", Some((TRAFFIC_TOKEN_HEADER, "traffic")), MayResume::No),
            ("POST", "/process.Process/Start", None, MayResume::No),
            ("GET", "/envs", None, MayResume::No),
            ("GET", "/health", None, MayResume::Yes),
            ("OPTIONS", "/files", None, MayResume::Yes),
            ("GET", "/files?path=hello.txt", None, MayResume::No),
            ("GET", "/files?path=hello.txt&signature=v1_x", None, MayResume::No),
            (
                "GET",
                "/files?path=hello.txt&username=user&signature=v1_gUtH%2Fs9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E",
                None,
                MayResume::Yes,
            ),
        ];
        for (method, uri, header, expected) in table {
            let may = private().check(AGENT_PORT, &request(method, uri, header));
            assert_eq!(may, Ok(expected), "{method} {uri} {header:?}");
        }
    }

    #[test]
    fn a_signature_that_has_expired_resumes_nothing() {
        let access = private();
        for (at, expected) in [(1, MayResume::No), (-1, MayResume::No), (i64::MAX, MayResume::Yes)] {
            let signature = sign("a", Operation::Read, "", TOKEN, Some(at)).replace('+', "%2B");
            let uri = format!("/files?path=a&signature={signature}&signature_expiration={at}");
            assert_eq!(access.check(AGENT_PORT, &request("GET", &uri, None)), Ok(expected), "{at}");
        }
    }

    #[test]
    fn programs_see_the_masked_host_and_the_agent_its_own() {
        assert_eq!(private().masked_host(8000).as_deref(), Some("localhost:8000"));
        assert_eq!(private().masked_host(AGENT_PORT), None);
        assert_eq!(Access::default().masked_host(8000), None);
    }

    proptest! {
        #[test]
        fn a_signed_url_is_its_signers_and_nobody_elses(
            path in "\\PC{0,20}", user in "[a-z]{0,8}", token in "[a-f0-9]{40}", other in "[a-f0-9]{40}",
            at in proptest::option::of(any::<i64>()), write: bool,
        ) {
            prop_assume!(token != other);
            let (operation, method) = if write { (Operation::Write, "POST") } else { (Operation::Read, "GET") };
            let query = FilesQuery {
                path: Some(path.clone()),
                username: Some(user.clone()),
                signature: Some(sign(&path, operation, &user, &token, at)),
                signature_expiration: at,
            };
            let uri = format!("/files?{}", serde_urlencoded::to_string(&query).unwrap());
            let request = request(method, &uri, None);
            let file = SignedFile::of(request.method(), request.uri()).unwrap();
            prop_assert!(file.is_by(&token));
            prop_assert!(!file.is_by(&other));
        }
    }
}

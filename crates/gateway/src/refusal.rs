//! Why the gateway itself answers, and with which words.
//!
//! SDKs act on these: `502` with "The sandbox was not found" is how they tell a stopped sandbox from one that
//! answers. Programs get JSON; a browser gets a small page that says the same.

use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use torpor_types::SandboxId;

use crate::body::{Body, full};
use crate::page::page;

/// The gateway does not carry a request to the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The sandbox does not exist or was killed: 502.
    #[error("The sandbox was not found")]
    NotFound,
    /// The sandbox is paused and traffic does not resume it: 502. To programs it says what it says of one that does not
    /// exist, which is what SDKs expect.
    #[error("The sandbox was not found")]
    Paused,
    /// The sandbox is being paused or resumed, and that takes long: 409.
    #[error("The sandbox is still transitioning. Try again in a moment.")]
    Transitioning,
    /// The sandbox has no public traffic, and the request no token: 403.
    #[error(
        "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
    )]
    TrafficTokenMissing,
    /// The sandbox has no public traffic, and the request another token: 403.
    #[error(
        "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"
    )]
    TrafficTokenInvalid,
    /// The sandbox is paused, and the request has not shown what is needed to resume it: 403.
    #[error(
        "This sandbox can't be resumed with the credentials provided. Check your access token and try again."
    )]
    MayNotResume,
    /// The URL's signature is nobody's: 401, with the reason.
    #[error("{0}")]
    Unauthorized(String),
    /// A limit is reached: 429, with the reason.
    #[error("{0}")]
    Limited(String),
    /// Nothing listens on the port: 502.
    #[error("The sandbox is running but port is not open")]
    PortClosed,
    /// The program behind the port broke off, or cannot be reached: 502, with what happened.
    #[error("The sandbox is running but the request failed: {0}")]
    Broken(String),
    /// The request names no possible sandbox: 400, with the reason.
    #[error("{0}")]
    Malformed(String),
    /// An endpoint of the agent that only the server may call: 404.
    #[error("This endpoint is reserved for the E2B control plane")]
    Reserved,
}

/// What the refused request was for, as far as it is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked<'a> {
    pub(crate) id: Option<&'a SandboxId>,
    pub(crate) port: Option<u16>,
    pub(crate) as_page: bool,
}

/// The field names and their order are part of the protocol.
#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(rename = "sandboxId", skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<&'a str>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    code: u16,
}

// === impl Refusal ===

impl Refusal {
    /// The HTTP status it is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::NotFound | Refusal::Paused | Refusal::PortClosed | Refusal::Broken(_) => {
                StatusCode::BAD_GATEWAY
            }
            Refusal::Transitioning => StatusCode::CONFLICT,
            Refusal::TrafficTokenMissing | Refusal::TrafficTokenInvalid | Refusal::MayNotResume => {
                StatusCode::FORBIDDEN
            }
            Refusal::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Refusal::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
            Refusal::Reserved => StatusCode::NOT_FOUND,
        }
    }

    pub(crate) fn into_response(self, asked: &Asked<'_>) -> Response<Body> {
        let (content_type, text) = if asked.as_page {
            ("text/html; charset=utf-8", page(&self, asked))
        } else {
            ("application/json", self.json(asked))
        };
        let mut response = Response::new(full(text));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        response
    }

    fn json(&self, asked: &Asked<'_>) -> String {
        let shows_port = matches!(self, Refusal::PortClosed | Refusal::Broken(_));
        let body = ErrorBody {
            sandbox_id: asked.id.map(SandboxId::as_str),
            message: self.to_string(),
            port: asked.port.filter(|_| shows_port),
            code: self.status().as_u16(),
        };
        serde_json::to_string(&body).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_are_the_ones_sdks_know() {
        let id = "iabc".parse().unwrap();
        let asked = Asked { id: Some(&id), port: Some(8000), as_page: false };
        let all = [
            Refusal::NotFound,
            Refusal::Paused,
            Refusal::Transitioning,
            Refusal::TrafficTokenMissing,
            Refusal::TrafficTokenInvalid,
            Refusal::MayNotResume,
            Refusal::Unauthorized("invalid signature".to_owned()),
            Refusal::Limited("Too many connections".to_owned()),
            Refusal::PortClosed,
            Refusal::Broken("the program closed the connection".to_owned()),
            Refusal::Malformed("'0' is not a port (1 to 65535)".to_owned()),
            Refusal::Reserved,
        ];
        insta::assert_snapshot!(all.map(|refusal| refusal.json(&asked)).join("\n"));
    }
}

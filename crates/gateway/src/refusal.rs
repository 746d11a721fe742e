//! Why the gateway itself answers, and with which words.
//!
//! SDKs act on these: `502` with "The sandbox was not found" is how they tell a stopped sandbox from one that
//! answers. Programs get JSON; a browser gets a small page that says the same.

use http::header::{ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use torpor_types::SandboxId;

use crate::body::{Body, full};

/// The gateway does not carry a request to the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The sandbox does not exist, was killed, or is paused: 502.
    #[error("The sandbox was not found")]
    NotFound,
    /// The sandbox is being paused or resumed: 409.
    #[error("The sandbox is being paused or resumed; try again in a moment")]
    Transitioning,
    /// The caller may not reach this sandbox: 403, with the reason.
    #[error("{0}")]
    Forbidden(String),
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
            Refusal::NotFound | Refusal::PortClosed | Refusal::Broken(_) => StatusCode::BAD_GATEWAY,
            Refusal::Transitioning => StatusCode::CONFLICT,
            Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
            Refusal::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
            Refusal::Reserved => StatusCode::NOT_FOUND,
        }
    }

    pub(crate) fn into_response(self, asked: &Asked<'_>) -> Response<Body> {
        let (content_type, text) = if asked.as_page {
            ("text/html; charset=utf-8", self.page(asked))
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

    fn page(&self, asked: &Asked<'_>) -> String {
        let status = self.status();
        let advice = match self {
            Refusal::NotFound => {
                "It may be paused, killed, or past its timeout. Resume or create it, then reload."
            }
            Refusal::Transitioning | Refusal::Limited(_) => "Reload in a moment.",
            Refusal::PortClosed => "Start a server inside the sandbox on this port, then reload.",
            Refusal::Broken(_) => "Look at the output of the program behind this port, then reload.",
            Refusal::Forbidden(_) | Refusal::Malformed(_) | Refusal::Reserved => "",
        };
        let place = match (asked.id, asked.port) {
            (Some(id), Some(port)) => format!("sandbox <code>{id}</code>, port <code>{port}</code>"),
            (Some(id), None) => format!("sandbox <code>{id}</code>"),
            _ => String::new(),
        };
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{code} {message}</title>\n\
             <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:20vh auto;padding:0 1em;\
             color:#222;background:#fff}}code{{background:#eee;padding:0 .3em}}\
             @media(prefers-color-scheme:dark){{body{{color:#ddd;background:#181818}}code{{background:#333}}}}\
             </style></head>\n<body><h1>{message}</h1><p>{place}</p><p>{advice}</p><p><small>{code}</small></p>\
             </body></html>\n",
            code = status.as_u16(),
            message = escape(&self.to_string()),
        )
    }
}

/// Whether the client is a browser showing a page, which is told apart by what it accepts and what it calls itself.
pub(crate) fn is_browser(headers: &HeaderMap) -> bool {
    let holds = |name, text: &str| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .is_some_and(|v| v.contains(text))
    };
    holds(ACCEPT, "text/html") && holds(USER_AGENT, "Mozilla/")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
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
            Refusal::Transitioning,
            Refusal::Forbidden("The traffic access token is missing".to_owned()),
            Refusal::Limited("Too many connections".to_owned()),
            Refusal::PortClosed,
            Refusal::Broken("the program closed the connection".to_owned()),
            Refusal::Malformed("'0' is not a port (1 to 65535)".to_owned()),
            Refusal::Reserved,
        ];
        insta::assert_snapshot!(all.map(|refusal| refusal.json(&asked)).join("\n"));
    }

    #[test]
    fn a_browser_gets_a_page_without_anything_of_the_request_unescaped() {
        let id = "iabc".parse().unwrap();
        let asked = Asked { id: Some(&id), port: Some(8000), as_page: true };
        insta::assert_snapshot!(Refusal::Malformed("<script>".to_owned()).page(&asked));
        insta::assert_snapshot!(Refusal::PortClosed.page(&asked));
    }
}

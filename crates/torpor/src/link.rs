//! The way to a server with one key, and through its gateway into its sandboxes: what the commands, the bench and the torture
//! harness all ask by. It takes no status for an error, for the harness asks for much that has to be refused.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use torpor_envd_api::ENVD_PORT;
use torpor_envd_api::connectrpc::ConnectError;
use torpor_envd_api::connectrpc::client::{ClientConfig, HttpClient};
use torpor_envd_api::process::ProcessClient;

/// Says which sandbox a request is for.
const SANDBOX_HEADER: &str = "e2b-sandbox-id";
/// Says which port in it.
const PORT_HEADER: &str = "e2b-sandbox-port";
/// Says that the agent may answer.
const TOKEN_HEADER: &str = "x-access-token";

/// A request that was not answered at all.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {why}")]
pub(crate) struct NoAnswer {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// An answer, whatever it says.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
    /// What the bytes are as JSON; null if there are none, or they are not JSON.
    pub(crate) body: Value,
}

/// One server, one key. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    key: String,
}

/// A sandbox, as far as requests into it need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) id: String,
    pub(crate) token: Option<String>,
}

/// A request to a port in a sandbox.
pub(crate) struct ToPort<'a> {
    pub(crate) port: u16,
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: &'a str,
    pub(crate) content_type: &'a str,
    pub(crate) body: Bytes,
}

// === impl NoAnswer ===

impl NoAnswer {
    /// Of a call to the agent, whose refusals are errors, too.
    pub(crate) fn of_agent(what: &str, error: &ConnectError) -> NoAnswer {
        NoAnswer { what: what.to_owned(), why: text_of(error) }
    }

    fn new(what: &str, error: &(dyn std::error::Error + 'static)) -> NoAnswer {
        NoAnswer { what: what.to_owned(), why: root_cause(error) }
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, self.body)
    }
}

// === impl Handle ===

impl Handle {
    /// From what create, connect and fork answer.
    pub(crate) fn of(body: &Value) -> Option<Handle> {
        let id = body["sandboxID"].as_str()?.to_owned();
        Some(Handle { id, token: body["envdAccessToken"].as_str().map(str::to_owned) })
    }
}

// === impl ToPort ===

impl<'a> ToPort<'a> {
    /// A GET.
    pub(crate) fn get(port: u16, target: &'a str) -> ToPort<'a> {
        let (method, body) = (Method::GET, Bytes::new());
        ToPort { port, method, target, content_type: "application/json", body }
    }
}

// === impl Link ===

impl Link {
    /// `url` has no slash at its end.
    pub(crate) fn new(url: String, key: String) -> Link {
        Link { client: Client::builder(TokioExecutor::new()).build_http(), url, key }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    #[cfg(test)]
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Asks the control plane.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, NoAnswer> {
        let what = format!("{method} {path}");
        let request = self
            .request(method, path, "application/json")
            .header("x-api-key", &self.key)
            .body(Full::new(Bytes::from(body.map(|body| body.to_string()).unwrap_or_default())));
        self.send(&what, request).await
    }

    /// Asks what listens in a sandbox.
    pub(crate) async fn ask(&self, sandbox: &Handle, ask: ToPort<'_>) -> Result<Answer, NoAnswer> {
        let what = format!("{} {} in {}", ask.method, ask.target, sandbox.id);
        let mut request = self
            .request(ask.method, ask.target, ask.content_type)
            .header(SANDBOX_HEADER, &sandbox.id)
            .header(PORT_HEADER, ask.port);
        if let Some(token) = &sandbox.token {
            request = request.header(TOKEN_HEADER, token);
        }
        self.send(&what, request.body(Full::new(ask.body))).await
    }

    /// What starts programs in a sandbox and talks to them. `authorization` names another user than the template's.
    pub(crate) fn processes(
        &self,
        sandbox: &Handle,
        authorization: Option<String>,
    ) -> Result<ProcessClient<HttpClient>, NoAnswer> {
        let url = self.url.parse().map_err(|error| NoAnswer::new(&self.url, &error))?;
        let mut config = ClientConfig::new(url)
            .json()
            .with_default_header(SANDBOX_HEADER, sandbox.id.as_str())
            .with_default_header(PORT_HEADER, ENVD_PORT.to_string());
        if let Some(token) = &sandbox.token {
            config = config.with_default_header(TOKEN_HEADER, token.as_str());
        }
        if let Some(authorization) = authorization {
            config = config.with_default_header("authorization", authorization);
        }
        Ok(ProcessClient::new(HttpClient::plaintext(), config))
    }

    fn request(&self, method: Method, target: &str, content_type: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.url))
            .header("content-type", content_type)
            .header("user-agent", concat!("torpor/", env!("CARGO_PKG_VERSION")))
    }

    async fn send(
        &self,
        what: &str,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
    ) -> Result<Answer, NoAnswer> {
        let request = request.map_err(|error| NoAnswer::new(what, &error))?;
        let response = self.client.request(request).await.map_err(|error| NoAnswer::new(what, &error))?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map_err(|error| NoAnswer::new(what, &error))?.to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, bytes, body })
    }
}

/// What an error ends in: "Connection refused" and not "client error (Connect)".
fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

/// What the agent says of an error.
pub(crate) fn text_of(error: &ConnectError) -> String {
    error.message.clone().unwrap_or_else(|| error.code.as_str().to_owned())
}

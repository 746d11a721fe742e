//! The way to a server and into its sandboxes: requests whose status is looked at rather than taken for an error, for
//! the harness asks for much that has to be refused.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use torpor_envd_api::ENVD_PORT;

/// Where the checker listens in its sandbox.
pub(super) const CHECKER_PORT: u16 = 7007;

/// A request that was not answered at all.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {why}")]
pub(super) struct NoAnswer {
    pub(super) what: String,
    pub(super) why: String,
}

/// An answer, whatever it says.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Null if it had no body, or one that is not JSON.
    pub(super) body: Value,
}

/// One server, one key. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    key: String,
}

/// A sandbox, as far as requests need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) id: String,
    pub(super) token: Option<String>,
}

/// The events of a program in a sandbox, as they come.
pub(super) struct Events {
    body: Incoming,
    read: Vec<u8>,
}

// === impl Answer ===

impl Answer {
    pub(super) fn is_success(&self) -> bool {
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
    pub(super) fn of(body: &Value) -> Option<Handle> {
        let id = body["sandboxID"].as_str()?.to_owned();
        Some(Handle { id, token: body["envdAccessToken"].as_str().map(str::to_owned) })
    }
}

// === impl Api ===

impl Api {
    pub(super) fn new(url: String, key: String) -> Api {
        Api { client: Client::builder(TokioExecutor::new()).build_http(), url, key }
    }

    /// Asks the control plane.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, NoAnswer> {
        let what = format!("{method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("x-api-key", &self.key)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.map(|body| body.to_string()).unwrap_or_default())));
        self.send(&what, request).await
    }

    /// Asks the checker in a sandbox, once.
    pub(super) async fn ask(&self, sandbox: &Handle, target: &str) -> Result<Answer, NoAnswer> {
        let request = self.to_port(Method::GET, target, sandbox, CHECKER_PORT).body(Full::default());
        self.send(&format!("GET {target} in {}", sandbox.id), request).await
    }

    /// Asks the checker in a sandbox until it answers, at most for `limit`.
    pub(super) async fn ask_until_answered(
        &self,
        sandbox: &Handle,
        target: &str,
        limit: Duration,
    ) -> Result<Value, NoAnswer> {
        let deadline = Instant::now() + limit;
        loop {
            let once = tokio::time::timeout(limit, self.ask(sandbox, target)).await;
            let why = match once {
                Ok(Ok(answer)) if answer.status == 200 => return Ok(answer.body),
                Ok(Ok(answer)) => answer.to_string(),
                Ok(Err(error)) => error.why,
                Err(_) => format!("no answer within {limit:?}"),
            };
            if Instant::now() >= deadline {
                return Err(NoAnswer { what: format!("GET {target} in {}", sandbox.id), why });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Puts a file into a sandbox.
    pub(super) async fn upload(
        &self,
        sandbox: &Handle,
        path: &str,
        content: &'static [u8],
    ) -> Result<Answer, NoAnswer> {
        let request = self
            .to_port(Method::POST, &format!("/files?path={path}&username=user"), sandbox, ENVD_PORT)
            .header("content-type", "application/octet-stream")
            .body(Full::new(Bytes::from_static(content)));
        self.send(&format!("uploading {path} to {}", sandbox.id), request).await
    }

    /// A unary call to the agent.
    pub(super) async fn rpc(&self, sandbox: &Handle, method: &str, body: &Value) -> Result<Answer, NoAnswer> {
        let request = self
            .to_port(Method::POST, method, sandbox, ENVD_PORT)
            .header("connect-protocol-version", "1")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())));
        self.send(&format!("{method} in {}", sandbox.id), request).await
    }

    /// A call to the agent that is answered by a stream of events.
    pub(super) async fn stream(
        &self,
        sandbox: &Handle,
        method: &str,
        body: &Value,
    ) -> Result<Events, NoAnswer> {
        // One Connect envelope: a byte of flags, the length, the message.
        let message = body.to_string();
        let mut envelope = vec![0];
        envelope.extend((message.len() as u32).to_be_bytes());
        envelope.extend(message.as_bytes());
        let request = self
            .to_port(Method::POST, method, sandbox, ENVD_PORT)
            .header("connect-protocol-version", "1")
            .header("content-type", "application/connect+json")
            .body(Full::new(Bytes::from(envelope)));
        let what = format!("{method} in {}", sandbox.id);
        let response = self.raw(&what, request).await?;
        if response.status().is_success() {
            return Ok(Events { body: response.into_body(), read: Vec::new() });
        }
        Err(NoAnswer { what, why: format!("it was answered {}", response.status()) })
    }

    fn to_port(
        &self,
        method: Method,
        target: &str,
        sandbox: &Handle,
        port: u16,
    ) -> hyper::http::request::Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.url))
            .header("e2b-sandbox-id", &sandbox.id)
            .header("e2b-sandbox-port", port);
        if let Some(token) = &sandbox.token {
            request = request.header("x-access-token", token);
        }
        request
    }

    async fn send(
        &self,
        what: &str,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
    ) -> Result<Answer, NoAnswer> {
        let response = self.raw(what, request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| no_answer(what, &error))?.to_bytes();
        Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
    }

    async fn raw(
        &self,
        what: &str,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let request = request.map_err(|error| no_answer(what, &error))?;
        self.client.request(request).await.map_err(|error| no_answer(what, &error))
    }
}

// === impl Events ===

impl Events {
    /// The next event; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, NoAnswer> {
        let what = "following a program";
        loop {
            if let Some((head, rest)) = self.read.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if rest.len() >= length {
                    let message = serde_json::from_slice(&rest[..length]);
                    let message: Value = message.map_err(|error| no_answer(what, &error))?;
                    self.read.drain(..5 + length);
                    return Ok(Some(message));
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(no_answer(what, &error)),
                Some(Ok(frame)) => self.read.extend(frame.into_data().unwrap_or_default()),
            }
        }
    }
}

/// The bytes in a JSON string of base64.
pub(super) fn bytes_of(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default()
}

/// Bytes as a JSON string of base64.
pub(super) fn base64_of(bytes: &[u8]) -> Value {
    json!(STANDARD.encode(bytes))
}

fn no_answer(what: &str, error: &(dyn std::error::Error + 'static)) -> NoAnswer {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    NoAnswer { what: what.to_owned(), why: cause.to_string() }
}

//! A client that measures: every call returns how long its caller waited, and what the server says of the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use torpor_envd_api::ENVD_PORT;

/// A call did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// No answer.
    #[error("{what}: {why}. Does a server listen there (torpor serve)?")]
    NoAnswer { what: String, why: String },
    /// An answer that is an error.
    #[error("{what} was answered {status}: {body}")]
    Refused { what: String, status: u16, body: String },
    /// A command in the sandbox failed.
    #[error("the command `{command}` in the sandbox failed: {why}")]
    Command { command: String, why: String },
}

/// An answer, and the time it took.
pub(crate) struct Timed {
    /// The body; null if there was none.
    pub(crate) body: Value,
    /// From before sending to the last byte.
    pub(crate) waited: Duration,
    /// The server's `Server-Timing`: milliseconds by step.
    pub(crate) steps: BTreeMap<String, f64>,
    /// Names the next page of a listing.
    pub(crate) next_token: Option<String>,
}

/// An answer as it came.
struct Raw {
    body: Bytes,
    steps: BTreeMap<String, f64>,
    next_token: Option<String>,
}

/// One server, one key.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    key: String,
}

/// A sandbox, as far as a measurement needs it.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) id: String,
    pub(crate) token: Option<String>,
}

// === impl Handle ===

impl Handle {
    /// The sandbox that an answer tells of.
    pub(crate) fn of(body: &Value) -> Handle {
        let text = |field: &str| body[field].as_str().map(str::to_owned);
        Handle { id: text("sandboxID").unwrap_or_default(), token: text("envdAccessToken") }
    }
}

// === impl Api ===

impl Api {
    pub(crate) fn new(url: &str, key: &str) -> Api {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Api { client, url: url.trim_end_matches('/').to_owned(), key: key.to_owned() }
    }

    /// Creates a sandbox that lives for an hour.
    pub(crate) async fn create(&self, template: &str) -> Result<(Handle, Timed), ApiError> {
        let body = json!({ "templateID": template, "timeout": 3600 });
        let answer = self.call(Method::POST, "/v2/sandboxes", Some(body)).await?;
        Ok((Handle::of(&answer.body), answer))
    }

    /// Pauses it.
    pub(crate) async fn pause(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        self.call(Method::POST, &format!("/sandboxes/{}/pause", sandbox.id), None).await
    }

    /// Pauses it, and waits until that would survive a power cut.
    pub(crate) async fn pause_durably(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        self.call(Method::POST, &format!("/sandboxes/{}/pause?waitDurable=true", sandbox.id), None).await
    }

    /// Waits until its last pause is on disk.
    pub(crate) async fn wait_until_durable(&self, sandbox: &Handle) -> Result<(), ApiError> {
        while self.get(sandbox).await?.body["durable"] != json!(true) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Resumes it for an hour.
    pub(crate) async fn connect(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        let path = format!("/v2/sandboxes/{}/connect", sandbox.id);
        self.call(Method::POST, &path, Some(json!({ "timeout": 3600 }))).await
    }

    /// Takes a snapshot of it, and deletes that.
    pub(crate) async fn snapshot(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        let (id, answer) = self.take_snapshot(sandbox).await?;
        self.delete_snapshot(&id).await?;
        Ok(answer)
    }

    /// Takes a snapshot of it, and says by which id sandboxes are created from that.
    pub(crate) async fn take_snapshot(&self, sandbox: &Handle) -> Result<(String, Timed), ApiError> {
        let path = format!("/sandboxes/{}/snapshots", sandbox.id);
        let answer = self.call(Method::POST, &path, Some(json!({}))).await?;
        Ok((answer.body["snapshotID"].as_str().unwrap_or_default().to_owned(), answer))
    }

    /// Deletes a snapshot that was taken.
    pub(crate) async fn delete_snapshot(&self, id: &str) -> Result<(), ApiError> {
        self.call(Method::DELETE, &format!("/templates/{id}"), None).await.map(|_| ())
    }

    /// Describes it.
    pub(crate) async fn get(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        self.call(Method::GET, &format!("/sandboxes/{}", sandbox.id), None).await
    }

    /// One page of the list of sandboxes, running and paused: the first, or the one that the page before named.
    pub(crate) async fn list(&self, page: Option<&str>) -> Result<Timed, ApiError> {
        let query = page.map(|token| format!("?nextToken={token}")).unwrap_or_default();
        self.call(Method::GET, &format!("/v2/sandboxes{query}"), None).await
    }

    /// Destroys it.
    pub(crate) async fn kill(&self, sandbox: &Handle) -> Result<(), ApiError> {
        self.call(Method::DELETE, &format!("/sandboxes/{}", sandbox.id), None).await.map(|_| ())
    }

    /// Asks the agent in the sandbox whether it is well.
    pub(crate) async fn agent_health(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        let request = self.to_sandbox(Method::GET, "/health", sandbox, Bytes::new(), "application/json");
        self.send("GET /health in the sandbox".to_owned(), request).await
    }

    /// Runs a shell command in the sandbox and returns what it printed.
    pub(crate) async fn run(&self, sandbox: &Handle, command: &str) -> Result<String, ApiError> {
        let failed = |why: String| ApiError::Command { command: command.to_owned(), why };
        let start =
            json!({ "process": { "cmd": "/bin/bash", "args": ["-l", "-c", command] }, "stdin": false });
        // One Connect envelope: a byte of flags, the length, the message.
        let message = start.to_string();
        let mut body = vec![0];
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message.as_bytes());
        let path = "/process.Process/Start";
        let request = self.to_sandbox(Method::POST, path, sandbox, body.into(), "application/connect+json");
        let answer = self.raw(format!("`{command}` in the sandbox"), request).await?.body;
        let mut output = Vec::new();
        let mut exit = None;
        let mut rest = &answer[..];
        while let Some((header, tail)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
            let (message, tail) =
                tail.split_at_checked(length).ok_or_else(|| failed("cut off".to_owned()))?;
            rest = tail;
            let message: Value = serde_json::from_slice(message).map_err(|e| failed(e.to_string()))?;
            if let Some(error) = message.get("error") {
                return Err(failed(error.to_string()));
            }
            let event = &message["event"];
            for stream in ["stdout", "stderr"] {
                let data = event["data"][stream].as_str().unwrap_or_default();
                output.extend(base64::engine::general_purpose::STANDARD.decode(data).unwrap_or_default());
            }
            if let Some(end) = event.get("end") {
                exit = Some(end["exitCode"].as_i64().unwrap_or(0));
            }
        }
        let output = String::from_utf8_lossy(&output).into_owned();
        match exit {
            Some(0) => Ok(output),
            Some(code) => Err(failed(format!("exit code {code}: {output}"))),
            None => Err(failed(format!("it did not end: {output}"))),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Timed, ApiError> {
        let what = format!("{method} {path}");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(self.uri(path))
            .header("x-api-key", &self.key)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)));
        self.send(what, request).await
    }

    fn to_sandbox(
        &self,
        method: Method,
        path: &str,
        sandbox: &Handle,
        body: Bytes,
        content_type: &str,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.uri(path))
            .header("e2b-sandbox-id", &sandbox.id)
            .header("e2b-sandbox-port", ENVD_PORT)
            .header("connect-protocol-version", "1")
            .header("content-type", content_type);
        if let Some(token) = &sandbox.token {
            request = request.header("x-access-token", token);
        }
        request.body(Full::new(body))
    }

    async fn send(
        &self,
        what: String,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
    ) -> Result<Timed, ApiError> {
        let started = Instant::now();
        let Raw { body, steps, next_token } = self.raw(what, request).await?;
        let waited = started.elapsed();
        Ok(Timed { body: serde_json::from_slice(&body).unwrap_or(Value::Null), waited, steps, next_token })
    }

    async fn raw(
        &self,
        what: String,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
    ) -> Result<Raw, ApiError> {
        let no_answer = |why: String| ApiError::NoAnswer { what: what.clone(), why };
        let request = request.map_err(|e| no_answer(e.to_string()))?;
        let response = self.client.request(request).await.map_err(|e| no_answer(root_cause(&e)))?;
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let steps = header("server-timing").map(parse_steps).unwrap_or_default();
        let next_token = header("x-next-token").map(str::to_owned);
        let body = response.into_body().collect().await.map_err(|e| no_answer(root_cause(&e)))?.to_bytes();
        if status.is_success() {
            return Ok(Raw { body, steps, next_token });
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        Err(ApiError::Refused { what, status: status.as_u16(), body })
    }

    fn uri(&self, path: &str) -> Uri {
        format!("{}{path}", self.url).parse().unwrap_or_default()
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

/// The steps of a `Server-Timing` header, in milliseconds; a step that occurs twice is added up.
fn parse_steps(header: &str) -> BTreeMap<String, f64> {
    let mut steps = BTreeMap::new();
    for step in header.split(',') {
        if let Some((name, duration)) = step.trim().split_once(";dur=")
            && let Ok(ms) = duration.parse::<f64>()
        {
            *steps.entry(name.to_owned()).or_default() += ms;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_occur_twice_are_added_up_and_odd_ones_passed_over() {
        let steps = parse_steps("machine.stop;dur=1.5, cache;desc=hit, machine.stop;dur=0.25");
        assert_eq!(steps, BTreeMap::from([("machine.stop".to_owned(), 1.75)]));
    }
}

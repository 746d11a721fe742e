//! What a build asks of the agent in the machine it booted.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use torpor_envd_api::http::InitRequest;
use torpor_network::{AGENT_PORT, Connector};

/// The agent of a freshly booted machine.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    connector: Connector,
}

/// How a command in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) exit_code: i64,
    pub(crate) output: String,
}

/// The agent did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No connection.
    #[error("no connection to the agent: {0}")]
    Connect(#[from] std::io::Error),
    /// The connection broke.
    #[error("the connection to the agent broke: {0}")]
    Http(#[from] hyper::Error),
    /// A request that is not HTTP.
    #[error("the request to the agent could not be made: {0}")]
    Request(#[from] hyper::http::Error),
    /// Another answer than was hoped for.
    #[error("the agent answered {path} with {status}: {body}")]
    Refused {
        /// What was asked for.
        path: &'static str,
        /// The status.
        status: u16,
        /// What it said.
        body: String,
    },
    /// An answer that makes no sense.
    #[error("the agent's answer to {path} cannot be understood: {why}")]
    Answer {
        /// What was asked for.
        path: &'static str,
        /// Why not.
        why: String,
    },
}

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const START: &str = "/process.Process/Start";

// === impl Guest ===

impl Guest {
    /// The agent behind `connector`.
    pub(crate) fn new(connector: Connector) -> Self {
        Self { connector }
    }

    /// Whether the agent serves yet.
    pub(crate) async fn health(&self) -> Result<(), GuestError> {
        self.send(Request::get("/health").body(Full::default())?, "/health").await.map(|_| ())
    }

    /// Tells the agent the time and what it starts processes with.
    pub(crate) async fn init(&self, request: &InitRequest) -> Result<(), GuestError> {
        let body = serde_json::to_vec(request)
            .map_err(|error| GuestError::Answer { path: "/init", why: error.to_string() })?;
        let request =
            Request::builder().method(Method::POST).uri("/init").header("content-type", "application/json");
        self.send(request.body(Full::from(body))?, "/init").await.map(|_| ())
    }

    /// Runs a shell command as `user` to its end.
    pub(crate) async fn run(&self, user: &str, command: &str) -> Result<Ended, GuestError> {
        let message = json!({
            "process": { "cmd": "/bin/bash", "args": ["-l", "-c", command] },
            "stdin": false,
        });
        let request = Request::builder()
            .method(Method::POST)
            .uri(START)
            .header("content-type", "application/connect+json")
            .header("connect-protocol-version", "1")
            .header("authorization", format!("Basic {}", STANDARD.encode(format!("{user}:"))))
            .body(Full::from(envelope(&message)))?;
        let body = self.send(request, START).await?.into_body();
        ended(&body).map_err(|why| GuestError::Answer { path: START, why })
    }

    /// One request on a connection of its own: a build makes a dozen, and none may outlive its answer when the machine is captured.
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        path: &'static str,
    ) -> Result<Response<Bytes>, GuestError> {
        let stream = self.connector.connect_within(AGENT_PORT, CONNECT_WITHIN).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let (mut head, body) = request.into_parts();
        head.headers.insert("host", hyper::header::HeaderValue::from_static("agent"));
        head.headers.insert("connection", hyper::header::HeaderValue::from_static("close"));
        let answer = async {
            let (head, body) = sender.send_request(Request::from_parts(head, body)).await?.into_parts();
            Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
        };
        let answer: Result<Response<Bytes>, hyper::Error> = answer.await;
        connection.abort();
        let answer = answer?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (status, body) = (answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned());
        Err(GuestError::Refused { path, status, body })
    }
}

/// A message in Connect's streaming format: flags, length, JSON.
fn envelope(message: &Value) -> Vec<u8> {
    let json = message.to_string();
    let mut bytes = vec![0];
    // A message of this program's own making is far below 4 GiB.
    bytes.extend((json.len() as u32).to_be_bytes());
    bytes.extend(json.as_bytes());
    bytes
}

/// Reads the events of a process from the body of an answer.
fn ended(mut body: &[u8]) -> Result<Ended, String> {
    let (mut exit_code, mut output) = (None, Vec::new());
    while let Some((head, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (message, rest) = rest.split_at_checked(length).ok_or("it was cut short")?;
        body = rest;
        let message: Value = serde_json::from_slice(message).map_err(|error| error.to_string())?;
        if let Some(error) = message.get("error").filter(|_| head[0] & 2 != 0) {
            return Err(error.to_string());
        }
        let event = &message["event"];
        for stream in ["stdout", "stderr"] {
            if let Some(data) = event["data"][stream].as_str() {
                output.extend(STANDARD.decode(data).map_err(|error| error.to_string())?);
            }
        }
        if let Some(end) = event.get("end") {
            // Zero is left out, as protobuf's JSON does with every default.
            exit_code = Some(end["exitCode"].as_i64().unwrap_or(0));
        }
    }
    let exit_code = exit_code.ok_or("the process has no end")?;
    Ok(Ended { exit_code, output: String::from_utf8_lossy(&output).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_and_the_output_of_a_process_are_read_from_its_events() {
        let mut body = envelope(&json!({"event": {"start": {"pid": 7}}}));
        body.extend(envelope(&json!({"event": {"data": {"stdout": STANDARD.encode("hel")}}})));
        body.extend(envelope(&json!({"event": {"data": {"stderr": STANDARD.encode("lo")}}})));
        body.extend(envelope(&json!({"event": {"end": {"exitCode": 3, "exited": true}}})));
        assert_eq!(ended(&body), Ok(Ended { exit_code: 3, output: "hello".to_owned() }));
        let zero = envelope(&json!({"event": {"end": {"exited": true}}}));
        assert_eq!(ended(&zero).map(|ended| ended.exit_code), Ok(0));
    }

    #[test]
    fn an_error_at_the_end_of_the_stream_is_an_error() {
        let mut body = envelope(&json!({"error": {"code": "not_found", "message": "no such user"}}));
        body[0] = 2;
        assert!(ended(&body).unwrap_err().contains("no such user"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ended(&body);
        }
    }
}

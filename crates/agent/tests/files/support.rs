//! A running agent and the means to talk to it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// An agent process; killed when dropped.
pub(crate) struct Agent {
    process: Child,
    pub(crate) address: SocketAddr,
    client: Client<HttpConnector, Body>,
}

/// An answer, read to its end.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why an RPC failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RpcError {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

/// The messages of a streaming RPC.
pub(crate) struct Messages {
    body: Incoming,
    buffer: BytesMut,
}

/// A whole body.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A path to `GET` or `POST`, with query.
pub(crate) fn files(query: &[(&str, &str)]) -> String {
    let query: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
        .collect();
    format!("/files?{}", query.join("&"))
}

/// A multipart form with one part for each (field name, file name, contents), and its content type.
pub(crate) fn form(parts: &[(&str, Option<&str>, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, file_name, contents) in parts {
        let file_name = file_name.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        body.extend(
            format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"{file_name}\r\n\r\n").bytes(),
        );
        body.extend(*contents);
        body.extend(b"\r\n");
    }
    body.extend(b"--XX--\r\n");
    ("multipart/form-data; boundary=XX".into(), body)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The name of the user the tests run as.
pub(crate) fn own_user() -> String {
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let own = |line: &&str| line.split(':').nth(2) == Some(&uid.to_string());
    passwd.lines().find(own).unwrap().split(':').next().unwrap().to_owned()
}

// === impl Agent ===

impl Agent {
    /// Starts an agent whose default user is the one the tests run as.
    pub(crate) async fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_torpor-agent"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let agent = Self { process, address, client };
        agent.init(json!({ "defaultUser": own_user() })).await;
        agent
    }

    pub(crate) async fn init(&self, settings: Value) {
        let headers = [("content-type", "application/json")];
        let reply = self.send(Method::POST, "/init", &headers, full(settings.to_string())).await;
        assert_eq!(reply.status, StatusCode::NO_CONTENT, "{}", reply.text());
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) async fn open(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{target}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(body).unwrap()).await.unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Reply {
        let (parts, body) = self.open(method, target, headers, body).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &Path, headers: &[(&str, &str)]) -> Reply {
        self.send(Method::GET, &files(&[("path", text(path))]), headers, full("")).await
    }

    /// Uploads a raw body.
    pub(crate) async fn put(&self, path: &Path, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let headers = [&[("content-type", "application/octet-stream")], headers].concat();
        self.send(Method::POST, &files(&[("path", text(path))]), &headers, full(body)).await
    }

    /// Uploads a form.
    pub(crate) async fn post_form(
        &self,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        parts: &[(&str, Option<&str>, &[u8])],
    ) -> Reply {
        let (content_type, body) = form(parts);
        let headers = [&[("content-type", content_type.as_str())], headers].concat();
        self.send(Method::POST, &files(query), &headers, full(body)).await
    }

    /// Calls a unary RPC as the default user.
    pub(crate) async fn rpc(&self, method: &str, request: Value) -> Result<Value, RpcError> {
        self.rpc_with(method, request, &[]).await
    }

    pub(crate) async fn rpc_as(&self, user: &str, method: &str, request: Value) -> Result<Value, RpcError> {
        let authorization = format!("Basic {}", STANDARD.encode(format!("{user}:")));
        self.rpc_with(method, request, &[("authorization", &authorization)]).await
    }

    pub(crate) async fn rpc_with(
        &self,
        method: &str,
        request: Value,
        headers: &[(&str, &str)],
    ) -> Result<Value, RpcError> {
        let target = format!("/filesystem.Filesystem/{method}");
        let headers =
            [&[("content-type", "application/json"), ("connect-protocol-version", "1")], headers].concat();
        let reply = self.send(Method::POST, &target, &headers, full(request.to_string())).await;
        if reply.status.is_success() {
            return Ok(reply.json());
        }
        let error = reply.json();
        let field = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        Err(RpcError { status: reply.status.as_u16(), code: field("code"), message: field("message") })
    }

    /// Calls a server-streaming RPC.
    pub(crate) async fn stream(&self, method: &str, request: Value, headers: &[(&str, &str)]) -> Messages {
        let message = request.to_string();
        let mut envelope = vec![0];
        envelope.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        envelope.extend(message.bytes());
        let target = format!("/filesystem.Filesystem/{method}");
        let headers =
            [&[("content-type", "application/connect+json"), ("connect-protocol-version", "1")], headers]
                .concat();
        let response = self.open(Method::POST, &target, &headers, full(envelope)).await;
        assert_eq!(response.status(), StatusCode::OK);
        Messages { body: response.into_body(), buffer: BytesMut::new() }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

// === impl Reply ===

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Asserts an error of the `/files` endpoints.
    pub(crate) fn assert_error(&self, status: u16, message: &str) {
        assert_eq!(self.json(), json!({ "code": status, "message": message }));
        assert_eq!(self.status.as_u16(), status);
    }
}

// === impl Messages ===

impl Messages {
    /// The next message, or the error that ends the stream, or an empty object for a clean end.
    pub(crate) async fn next(&mut self) -> Result<Value, Value> {
        loop {
            if self.buffer.len() >= 5 {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + length {
                    let flags = self.buffer[0];
                    self.buffer.advance(5);
                    let message = serde_json::from_slice(&self.buffer.split_to(length)).unwrap();
                    return if flags & 2 != 0 { Err(message) } else { Ok(message) };
                }
            }
            let frame =
                self.body.frame().await.expect("the stream ends with an end-of-stream message").unwrap();
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// The next filesystem event as "KIND name".
    pub(crate) async fn event(&mut self) -> String {
        loop {
            let message = self.next().await.unwrap();
            if let Some(event) = message.get("filesystem") {
                return summary(event);
            }
        }
    }

    /// Events until one with this summary, which is included.
    pub(crate) async fn events_until(&mut self, last: &str) -> Vec<String> {
        let mut events = Vec::new();
        loop {
            events.push(self.event().await);
            if events.last().is_some_and(|event| event == last) {
                return events;
            }
        }
    }
}

/// An event as "KIND name".
pub(crate) fn summary(event: &Value) -> String {
    let kind = event["type"].as_str().unwrap().trim_start_matches("EVENT_TYPE_");
    format!("{kind} {}", event["name"].as_str().unwrap())
}

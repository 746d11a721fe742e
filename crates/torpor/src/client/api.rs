//! The REST API, as far as the commands use it.

use hyper::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ClientError;
use crate::link::{Answer, Link, NoAnswer};

/// One server, asked with one key. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api {
    link: Link,
}

/// A sandbox, as `GET /sandboxes/{id}` and the list describe it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SandboxInfo {
    #[serde(rename = "sandboxID")]
    pub(super) id: String,
    #[serde(rename = "templateID")]
    pub(super) template_id: String,
    pub(super) alias: Option<String>,
    pub(super) state: String,
    pub(super) started_at: jiff::Timestamp,
    pub(super) end_at: jiff::Timestamp,
    pub(super) cpu_count: u32,
    #[serde(rename = "memoryMB")]
    pub(super) memory_mib: u32,
    #[serde(rename = "diskSizeMB")]
    pub(super) disk_mib: u32,
    #[serde(default)]
    pub(super) metadata: std::collections::BTreeMap<String, String>,
    pub(super) envd_access_token: Option<String>,
    pub(super) kept_until: Option<jiff::Timestamp>,
    pub(super) durable: Option<bool>,
    /// Seconds without work after which it ends.
    pub(super) idle_timeout: Option<u32>,
    /// Why it did not end at its deadline.
    pub(super) held_up: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    message: String,
}

// === impl Api ===

impl Api {
    pub(super) fn new(url: String, key: String) -> Self {
        Self { link: Link::new(url, key) }
    }

    /// The way to the server, for what is not REST.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// One sandbox, also as the JSON it came in.
    pub(super) async fn sandbox(&self, id: &str) -> Result<(SandboxInfo, Value), ClientError> {
        let value: Value = self.get(&sandbox_path(id, "")).await?;
        Ok((read(&format!("GET {}", sandbox_path(id, "")), value.clone())?, value))
    }

    /// A running sandbox; a paused one is an error that says how to resume it.
    pub(super) async fn running_sandbox(&self, id: &str) -> Result<SandboxInfo, ClientError> {
        let (info, _) = self.sandbox(id).await?;
        if info.state == "paused" { Err(ClientError::Paused(info.id)) } else { Ok(info) }
    }

    /// All sandboxes that `query` asks for.
    pub(super) async fn list(&self, query: &str) -> Result<Vec<Value>, ClientError> {
        self.pages("/v2/sandboxes", query).await
    }

    /// All entries of a list, page after page.
    pub(super) async fn pages(&self, path: &str, query: &str) -> Result<Vec<Value>, ClientError> {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            let path = format!("{path}?{query}{token}");
            let (_, headers, value) = self.call(Method::GET, &path, None).await?;
            let page: Vec<Value> = read(&path, value)?;
            all.extend(page);
            match headers.get("x-next-token").and_then(|token| token.to_str().ok()) {
                Some(next) => token = format!("&nextToken={}", quote(next)),
                None => return Ok(all),
            }
        }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (_, _, value) = self.call(Method::GET, path, None).await?;
        read(path, value)
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Result<(StatusCode, Value), ClientError> {
        let (status, _, value) = self.call(Method::POST, path, Some(body)).await?;
        Ok((status, value))
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, path, None).await.map(|_| ())
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, HeaderMap, Value), ClientError> {
        let what = format!("{method} {path}");
        let answered = self.link.call(method, path, body).await;
        let answer = answered
            .map_err(|NoAnswer { why, .. }| ClientError::NoAnswer { url: self.link.url().to_owned(), why })?;
        let status = StatusCode::from_u16(answer.status).unwrap_or_default();
        if !answer.is_success() {
            let message = message_of(&what, status, &answer);
            return Err(ClientError::Refused { status: answer.status, message });
        }
        if answer.bytes.is_empty() {
            return Ok((status, answer.headers, Value::Null));
        }
        if answer.body.is_null() {
            // That is what it says, or it is not JSON.
            let read: Result<Value, _> = serde_json::from_slice(&answer.bytes);
            read.map_err(|error| ClientError::Unreadable { what, why: error.to_string() })?;
        }
        Ok((status, answer.headers, answer.body))
    }
}

/// `/sandboxes/{id}{rest}`, whatever the id is made of.
pub(super) fn sandbox_path(id: &str, rest: &str) -> String {
    format!("/sandboxes/{}{rest}", quote(id))
}

/// Percent-encodes everything but letters and digits.
pub(super) fn quote(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

pub(super) fn read<T: DeserializeOwned>(what: &str, value: Value) -> Result<T, ClientError> {
    serde_json::from_value(value)
        .map_err(|error| ClientError::Unreadable { what: what.to_owned(), why: error.to_string() })
}

fn message_of(what: &str, status: StatusCode, answer: &Answer) -> String {
    match serde_json::from_slice::<ErrorBody>(&answer.bytes) {
        Ok(body) => body.message,
        Err(_) => format!("{what} was answered {status}: {}", String::from_utf8_lossy(&answer.bytes).trim()),
    }
}

//! Bodies of the agent's plain HTTP endpoints.
//!
//! | endpoint | request | answer |
//! |---|---|---|
//! | `GET /health` | | 204 |
//! | `GET /metrics` | | [`Metrics`] |
//! | `GET /envs` | | object of names and values |
//! | `POST /init` | [`InitRequest`] | 204 |
//! | `POST /freeze`, `POST /unfreeze` | | 204; for the host alone, as is `/init` |
//! | `GET /telemetry` | [`TelemetryQuery`](crate::telemetry::TelemetryQuery) | lines, see [`crate::telemetry`] |
//! | `GET /files` | query, see [`FilesQuery`] | the file |
//! | `POST /files` | multipart or raw body, [`FilesQuery`] | [`WrittenFile`] list |
//! | `POST /files/compose` | [`ComposeRequest`] | [`WrittenFile`] |
//!
//! Every error is an [`ErrorBody`] with the HTTP status repeated in `code`, which the JavaScript SDK branches on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Header with the sandbox's access token.
pub const ACCESS_TOKEN_HEADER: &str = "x-access-token";

/// Header with the seconds between two keepalive events of a stream.
pub const KEEPALIVE_HEADER: &str = "keepalive-ping-interval";

/// Seconds between two keepalive events when the client does not say.
pub const DEFAULT_KEEPALIVE_SECONDS: u64 = 90;

/// Prefix of the request headers that carry a file's metadata.
pub const METADATA_HEADER_PREFIX: &str = "x-metadata-";

/// Name of the link by which OpenSSL finds the certificate of [`InitRequest::ca_bundle`] in a directory of certificates: a
/// hash of its subject, which is the same on every host.
pub const CA_LINK_NAME: &str = "c3f96627.0";

/// What the host tells the agent at each start and each resume of the sandbox, with `POST /init`.
///
/// A field that is absent leaves what it is about unchanged. The agent answers 204 when all of it is applied, so
/// the call can be repeated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitRequest {
    /// Environment variables for every process started from now on; replaces those of earlier calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// The access token clients must show from now on; the empty string means none is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// The time it is on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<jiff::Timestamp>,
    /// The user that processes and file operations run as when the client names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// The working directory when the client names none; the empty string means the user's home.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// The machine's host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Random bytes for the guest's kernel, fresh for each call; base64 on the wire.
    #[serde(skip_serializing_if = "Option::is_none", with = "base64_bytes")]
    pub entropy: Option<Vec<u8>>,
    /// The sandbox this machine carries; processes see it as `E2B_SANDBOX_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// The template it came from; processes see it as `E2B_TEMPLATE_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// Another value for each start or resume, the same for repeated calls. A new value tells the agent that
    /// streams opened before may have nobody at their other end any more.
    #[serde(rename = "lifecycleID", skip_serializing_if = "Option::is_none")]
    pub lifecycle_id: Option<String>,
    /// Certificate of an authority that the guest is to trust from now on, in PEM; the empty string changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
}

/// The guest's use of its resources, answered by `GET /metrics`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// When it was measured, in seconds since 1970.
    pub ts: i64,
    /// Number of virtual CPUs.
    pub cpu_count: u32,
    /// Use of all of them since the last measurement, in percent of all.
    pub cpu_used_pct: f32,
    /// Memory in bytes.
    pub mem_total: u64,
    /// Memory that could not be given to a new process, in bytes.
    pub mem_used: u64,
    /// Page cache and reclaimable slab, in bytes.
    pub mem_cache: u64,
    /// Memory in MiB.
    pub mem_total_mib: u64,
    /// Memory that could not be given to a new process, in MiB.
    pub mem_used_mib: u64,
    /// Used part of the root file system in bytes.
    pub disk_used: u64,
    /// Size of the root file system in bytes.
    pub disk_total: u64,
}

/// Query parameters of `GET /files` and `POST /files`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilesQuery {
    /// The file; relative to the user's home.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The user that reads or owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Stands in for the access token, see [`crate::signature`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// When the signature ends to be valid, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature_expiration: Option<i64>,
}

/// One file that `POST /files` wrote. Old SDKs reject keys they do not know, so there are no others, and `metadata`
/// is absent unless the request had some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// The absolute path.
    pub path: String,
    /// The last component of it.
    pub name: String,
    /// Always `file`.
    pub r#type: WrittenType,
    /// The metadata that was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// What `POST /files` can write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WrittenType {
    /// A regular file.
    #[default]
    File,
}

/// Body of `POST /files/compose`: makes one file of several and removes those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ComposeRequest {
    /// The files to join, in order.
    pub source_paths: Vec<String>,
    /// The file to make of them.
    pub destination: String,
    /// The user that reads them and owns the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

/// Answer of `POST /files/compose`.
pub type ComposeResponse = WrittenFile;

/// Body of every HTTP error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status.
    pub code: u16,
    /// What happened, why, and what to do.
    pub message: String,
}

/// Optional bytes as an optional base64 string.
mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| STANDARD.decode(text).map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_request_reads_what_e2b_infrastructure_sends() {
        let request: InitRequest = serde_json::from_str(
            r#"{"envVars":{"A":"b"},"accessToken":"t","timestamp":"2026-01-02T03:04:05.678901234Z","defaultUser":"user",
                "defaultWorkdir":"/w","hyperloopIP":"1.2.3.4","lifecycleID":"x","volumeMounts":[],"caBundle":""}"#,
        )
        .unwrap();
        assert_eq!(request.env_vars.unwrap()["A"], "b");
        assert_eq!(request.lifecycle_id.as_deref(), Some("x"));
        assert_eq!(request.timestamp.unwrap().as_nanosecond() % 1_000_000_000, 678_901_234);
    }

    #[test]
    fn an_init_request_survives_the_wire() {
        let request = InitRequest {
            entropy: Some(vec![0, 255, 7]),
            sandbox_id: Some("abc".into()),
            timestamp: Some(jiff::Timestamp::UNIX_EPOCH),
            ..Default::default()
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"timestamp":"1970-01-01T00:00:00Z","entropy":"AP8H","sandboxId":"abc"}"#);
        assert_eq!(serde_json::from_str::<InitRequest>(&text).unwrap(), request);
    }

    #[test]
    fn a_written_file_without_metadata_has_three_keys() {
        let file =
            WrittenFile { path: "/a".into(), name: "a".into(), r#type: WrittenType::File, metadata: None };
        assert_eq!(serde_json::to_string(&file).unwrap(), r#"{"path":"/a","name":"a","type":"file"}"#);
    }
}

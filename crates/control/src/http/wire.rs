//! The JSON of the REST API: names and shapes as the SDKs know them.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use torpor_types::SandboxId;
use utoipa::{IntoParams, ToSchema};

use super::error::ApiError;
use super::network::{Network, NetworkDetail};
use crate::lifecycle::{
    CreateSandbox, DEFAULT_TIMEOUT_S, LEGACY_TIMEOUT_S, OnTimeout, SandboxView, VisibleState,
};
use crate::registry::TemplateRow;
use crate::retention::MAX_DAYS;

/// Old SDKs join it to the id. There is one node, and its name is this.
const CLIENT_ID: &str = "00000000";

/// Body of `POST /sandboxes` and `POST /v2/sandboxes`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSandbox {
    #[serde(rename = "templateID")]
    pub(super) template_id: String,
    pub(super) timeout: Option<i64>,
    pub(super) auto_pause: Option<bool>,
    pub(super) auto_pause_memory: Option<bool>,
    pub(super) auto_resume: Option<AutoResume>,
    pub(super) secure: Option<bool>,
    #[serde(rename = "allow_internet_access")]
    pub(super) allow_internet_access: Option<bool>,
    pub(super) metadata: Option<BTreeMap<String, String>>,
    pub(super) env_vars: Option<BTreeMap<String, String>>,
    pub(super) network: Option<Network>,
    pub(super) mcp: Option<Value>,
    pub(super) iam: Option<Value>,
    pub(super) volume_mounts: Option<Value>,
    /// Torpor's own: seconds without work after which happens what happens at the deadline
    #[schema(minimum = 1)]
    pub(super) idle_timeout: Option<u32>,
    /// Torpor's own: days for which it is kept paused, 0 for ever
    #[schema(maximum = 36500)]
    pub(super) retention_days: Option<u32>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(super) struct AutoResume {
    #[serde(default)]
    pub(super) enabled: bool,
}

/// Body of `POST …/pause`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PauseRequest {
    pub(super) memory: Option<bool>,
    /// Torpor's own: answer only when the pause would survive a power cut.
    pub(super) wait_durable: Option<bool>,
}

/// Query of `POST …/pause`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PauseParams {
    /// Torpor's own: answer only when the pause would survive a power cut
    #[serde(rename = "waitDurable")]
    pub(super) wait_durable: Option<bool>,
}

/// Headers of `POST …/pause`.
#[derive(Debug, Clone, Default, IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct PauseHeader {
    /// Torpor's own: answer only when the pause would survive a power cut
    #[param(rename = "Torpor-Wait-Durable")]
    pub(super) wait_durable: Option<bool>,
}

/// Body of the first version's `POST …/connect`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(super) struct ConnectRequest {
    /// Seconds to live from now on; a running sandbox never gets less than it had
    pub(super) timeout: i64,
    /// `false`: boot from the disk, without what ran when it was paused; a running sandbox is left as it is
    pub(super) memory: Option<bool>,
}

/// Body of `POST …/resume` and `POST /v2/…/connect`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ResumeRequest {
    pub(super) timeout: Option<i64>,
    pub(super) auto_pause: Option<bool>,
    /// `false`: boot from the disk, without what ran when it was paused; a running sandbox is left as it is
    pub(super) memory: Option<bool>,
}

/// Body of `POST …/timeout`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(super) struct TimeoutRequest {
    pub(super) timeout: i64,
}

/// Body of `POST …/refreshes`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(super) struct RefreshRequest {
    pub(super) duration: Option<i64>,
}

/// Answer of create, resume and connect.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Sandbox {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    #[serde(rename = "envdVersion")]
    envd_version: String,
    alias: String,
    #[serde(rename = "envdAccessToken", skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    #[serde(rename = "trafficAccessToken", skip_serializing_if = "Option::is_none")]
    traffic_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
}

/// One entry of a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct ListedSandbox {
    #[serde(rename = "templateID")]
    template_id: String,
    alias: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    #[serde(rename = "startedAt")]
    started_at: String,
    #[serde(rename = "endAt")]
    end_at: String,
    #[serde(rename = "cpuCount")]
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    state: &'static str,
    #[serde(rename = "envdVersion")]
    envd_version: String,
    metadata: BTreeMap<String, String>,
    /// Torpor's own: when a paused one is removed if nobody resumes it
    #[serde(rename = "keptUntil", skip_serializing_if = "Option::is_none")]
    kept_until: Option<String>,
}

/// Answer of `GET /sandboxes/{id}`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct SandboxDetail {
    #[serde(flatten)]
    listed: ListedSandbox,
    #[serde(rename = "envdAccessToken", skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    #[serde(rename = "allowInternetAccess")]
    allow_internet_access: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    lifecycle: LifecycleJson,
    #[serde(rename = "pauseMode", skip_serializing_if = "Option::is_none")]
    pause_mode: Option<&'static str>,
    /// Torpor's own: seconds without work after which happens what happens at the deadline
    #[serde(rename = "idleTimeout", skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<u32>,
    /// Torpor's own: days for which its creator has it kept paused, 0 for ever
    #[serde(rename = "retentionDays", skip_serializing_if = "Option::is_none")]
    retention_days: Option<u32>,
    /// Torpor's own: why it runs beyond its deadline, if it was to be paused and could not be
    #[serde(rename = "heldUp", skip_serializing_if = "Option::is_none")]
    held_up: Option<String>,
    /// Torpor's own: whether a pause would survive a power cut by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    durable: Option<bool>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct LifecycleJson {
    #[serde(rename = "autoResume")]
    auto_resume: bool,
    #[serde(rename = "onTimeout")]
    on_timeout: &'static str,
}

/// One entry of `GET /templates`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Template {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "buildID")]
    build_id: String,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    public: bool,
    aliases: Vec<String>,
    names: Vec<String>,
    created_at: String,
    updated_at: String,
    created_by: Option<()>,
    last_spawned_at: Option<()>,
    spawn_count: u32,
    build_count: u32,
    envd_version: String,
    build_status: &'static str,
}

/// RFC 3339 in UTC with microseconds, the precision clients compare in.
pub(super) fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Which of the two create routes was used: they differ in what is meant by silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CreateVersion {
    /// `POST /sandboxes`: 15 s, and no access token unless asked for.
    V1,
    /// `POST /v2/sandboxes`: 300 s, always with an access token.
    V2,
}

// === impl PauseHeader ===

impl PauseHeader {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let wait_durable = match headers.get("torpor-wait-durable").map(|value| value.as_bytes()) {
            None => None,
            Some(b"true") => Some(true),
            Some(b"false") => Some(false),
            Some(_) => {
                return Err(ApiError::bad_request("Invalid header Torpor-Wait-Durable: it is true or false"));
            }
        };
        Ok(Self { wait_durable })
    }
}

// === impl NewSandbox ===

impl NewSandbox {
    /// Checks the request and fills in what was not said. What this server cannot do yet is refused, not ignored: a
    /// client that asks for a firewall rule must not believe that it has one.
    pub(super) fn into_create(self, version: CreateVersion) -> Result<CreateSandbox, ApiError> {
        let secure = version == CreateVersion::V2 || self.secure.unwrap_or(false);
        let allow_internet = self.allow_internet_access.unwrap_or(true);
        let network = self.network.unwrap_or_default().into_config(allow_internet)?;
        if !network.ingress.allow_public_traffic && !secure {
            return Err(ApiError::bad_request(
                "network.allowPublicTraffic=false needs a secured sandbox: send secure=true, or leave it out",
            ));
        }
        for (name, value) in [("mcp", &self.mcp), ("iam", &self.iam), ("volumeMounts", &self.volume_mounts)] {
            if value.as_ref().is_some_and(|value| !is_nothing(value)) {
                return Err(ApiError::bad_request(format!("{name} is not supported by this server yet")));
            }
        }
        let env_vars = self.env_vars.unwrap_or_default();
        for (name, value) in &env_vars {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(ApiError::bad_request(format!(
                    "envVars: '{name}' cannot be an environment variable (no name, or '=' or a zero byte in it)"
                )));
            }
        }
        if self.retention_days.is_some_and(|days| days > MAX_DAYS) {
            return Err(ApiError::bad_request(format!(
                "Invalid retentionDays: it is 0 (for ever) to {MAX_DAYS}"
            )));
        }
        if self.idle_timeout == Some(0) {
            return Err(ApiError::bad_request("Invalid idleTimeout: it is at least 1 second"));
        }
        let auto_resume = self.auto_resume.is_some_and(|auto| auto.enabled);
        let auto_pause = self.auto_pause.unwrap_or(false);
        let keep_memory_on_timeout = self.auto_pause_memory.unwrap_or(true);
        if !keep_memory_on_timeout && !auto_pause {
            return Err(ApiError::bad_request("autoPauseMemory=false requires autoPause"));
        }
        if !keep_memory_on_timeout && auto_resume {
            return Err(ApiError::bad_request(
                "autoPauseMemory=false excludes autoResume: what was paused without memory is not resumed by traffic",
            ));
        }
        Ok(CreateSandbox {
            id: SandboxId::random(),
            template: self.template_id,
            timeout_s: self.timeout.unwrap_or(match version {
                CreateVersion::V1 => LEGACY_TIMEOUT_S,
                CreateVersion::V2 => DEFAULT_TIMEOUT_S,
            }),
            on_timeout: on_timeout(auto_pause),
            keep_memory_on_timeout,
            auto_resume,
            idle_timeout_s: self.idle_timeout,
            retention_days: self.retention_days,
            secure,
            allow_internet,
            network,
            metadata: self.metadata.unwrap_or_default(),
            env_vars,
        })
    }
}

/// What `autoPause` stands for.
pub(super) fn on_timeout(auto_pause: bool) -> OnTimeout {
    if auto_pause { OnTimeout::Pause } else { OnTimeout::Kill }
}

pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

// === impl Sandbox ===

impl Sandbox {
    pub(super) fn new(view: SandboxView, domain: Option<&str>) -> Self {
        Self {
            template_id: view.template_id.into(),
            sandbox_id: view.id.into(),
            client_id: CLIENT_ID,
            envd_version: view.envd_version,
            alias: view.template_name,
            envd_access_token: view.access_token,
            traffic_access_token: view.traffic_token,
            domain: domain.map(str::to_owned),
        }
    }
}

// === impl ListedSandbox ===

impl From<SandboxView> for ListedSandbox {
    fn from(view: SandboxView) -> Self {
        Self {
            template_id: view.template_id.into(),
            alias: view.template_name,
            sandbox_id: view.id.into(),
            client_id: CLIENT_ID,
            started_at: time_text(view.started_at),
            end_at: time_text(view.end_at),
            cpu_count: view.shape.vcpus,
            memory_mb: view.shape.memory_mib,
            disk_size_mb: view.shape.disk_mib,
            state: view.state.as_str(),
            envd_version: view.envd_version,
            metadata: view.metadata,
            kept_until: view.kept_until.map(time_text),
        }
    }
}

// === impl SandboxDetail ===

impl SandboxDetail {
    pub(super) fn new(view: SandboxView, domain: Option<&str>) -> Self {
        let paused = view.state == VisibleState::Paused;
        Self {
            envd_access_token: view.access_token.clone(),
            allow_internet_access: view.allow_internet,
            network: NetworkDetail::of(&view.network),
            domain: domain.map(str::to_owned),
            lifecycle: LifecycleJson {
                auto_resume: view.auto_resume,
                on_timeout: match view.on_timeout {
                    OnTimeout::Kill => "kill",
                    OnTimeout::Pause => "pause",
                },
            },
            pause_mode: paused.then_some(if view.filesystem_only { "filesystem" } else { "full" }),
            idle_timeout: view.idle_timeout_s,
            retention_days: view.retention_days,
            held_up: view.held_up.clone(),
            durable: paused.then_some(view.durable),
            listed: view.into(),
        }
    }
}

// === impl Template ===

impl From<TemplateRow> for Template {
    fn from(row: TemplateRow) -> Self {
        Self {
            template_id: row.id.into(),
            build_id: row.snapshot_id.into(),
            cpu_count: row.shape.vcpus,
            memory_mb: row.shape.memory_mib,
            disk_size_mb: row.shape.disk_mib,
            public: false,
            aliases: vec![row.name.clone()],
            names: vec![row.name],
            created_at: time_text(row.created_at),
            updated_at: time_text(row.created_at),
            created_by: None,
            last_spawned_at: None,
            spawn_count: 0,
            build_count: 1,
            envd_version: row.envd_version,
            build_status: "ready",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn create(body: Value, version: CreateVersion) -> Result<CreateSandbox, ApiError> {
        serde_json::from_value::<NewSandbox>(body).unwrap().into_create(version)
    }

    #[test]
    fn silence_means_what_the_version_of_the_route_says() {
        let v1 = create(json!({"templateID": "base"}), CreateVersion::V1).unwrap();
        assert_eq!((v1.timeout_s, v1.secure, v1.on_timeout), (15, false, OnTimeout::Kill));
        let v2 = create(json!({"templateID": "base"}), CreateVersion::V2).unwrap();
        assert_eq!((v2.timeout_s, v2.secure, v2.allow_internet), (300, true, true));
    }

    #[test]
    fn the_bodies_sdks_send_are_accepted() {
        for body in [
            json!({"templateID":"base","timeout":300,"metadata":{},"envVars":{}}),
            json!({"templateID":"base","timeout":300,"autoPause":false}),
            json!({"templateID":"base","timeout":300,"secure":true,"allow_internet_access":true,
                   "metadata":{"a":"b"},"envVars":{"C":"d"},"mcp":null,"network":{"allowPublicTraffic":true}}),
            json!({"templateID":"base","metadata":{},"envVars":{},"autoPause":true,"autoPauseMemory":true,
                   "autoResume":{"enabled":true},"volumeMounts":[]}),
        ] {
            create(body.clone(), CreateVersion::V1).unwrap_or_else(|error| panic!("{body}: {error:?}"));
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_instead_of_ignored() {
        let refused = [
            json!({"templateID":"base","autoPauseMemory":false}),
            json!({"templateID":"base","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}}),
            json!({"templateID":"base","mcp":{"x":{"y":1}}}),
            json!({"templateID":"base","volumeMounts":[{"name":"a","path":"/a"}]}),
            json!({"templateID":"base","envVars":{"A=B":"c"}}),
        ];
        let errors =
            refused.map(|body| format!("{body}\n  {:?}", create(body.clone(), CreateVersion::V2).err()));
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn times_are_written_in_utc_with_microseconds() {
        let time: Timestamp = "2026-11-24T05:00:00.1234567+02:00".parse().unwrap();
        assert_eq!(time_text(time), "2026-11-24T03:00:00.123456Z");
        assert_eq!(time_text(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000000Z");
    }
}

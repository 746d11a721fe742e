//! The handlers of metrics and logs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use torpor_envd_api::telemetry::LogLevel;
use torpor_types::SandboxId;
use utoipa::{IntoParams, ToSchema};

use super::error::ApiError;
use super::extract::{QueryParams, SandboxPath, Team};
use super::openapi::{IdParam, RefusedOne, RefusedQuery};
use super::state::ApiState;
use super::wire::time_text;
use crate::telemetry::{Direction, LogQuery, LogRecord, MetricPoint};

type Shared = State<Arc<ApiState>>;

/// Entries of one answer, at most and by default.
const MAX_ENTRIES: usize = 1000;

/// Characters of a search, at most.
const MAX_SEARCH_CHARS: usize = 256;

/// Sandboxes of one question for metrics, at most.
const MAX_SANDBOXES: usize = 100;

/// From when to when.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct MetricsQuery {
    /// Unix time in seconds of the first point; the beginning if absent
    start: Option<i64>,
    /// Unix time in seconds of the last point; now if absent
    end: Option<i64>,
}

/// Whose metrics.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct NewestMetricsQuery {
    /// Ids of sandboxes, joined by commas, 100 at most
    #[param(example = "i0123456789abcdefghi")]
    sandbox_ids: String,
}

/// Which part of a log, first version.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsV1Query {
    /// Unix time in milliseconds from which on; the beginning if absent
    start: Option<i64>,
    /// Entries at most
    #[param(minimum = 0, maximum = 1000, default = 1000)]
    limit: Option<usize>,
}

/// Which part of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsV2Query {
    /// Unix time in milliseconds from which on, or back from which; entries of that millisecond are included
    cursor: Option<i64>,
    /// Entries at most
    #[param(minimum = 0, maximum = 1000, default = 1000)]
    limit: Option<usize>,
    /// `forward`: oldest first; `backward`: newest first
    #[param(inline)]
    direction: Option<DirectionJson>,
    /// The least that matters
    #[param(inline)]
    level: Option<LevelJson>,
    /// What the message must have in it; case matters
    #[param(max_length = 256)]
    search: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum DirectionJson {
    Forward,
    Backward,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum LevelJson {
    Debug,
    Info,
    Warn,
    Error,
}

/// The use of resources at one moment; sizes in bytes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SandboxMetric {
    #[schema(format = DateTime)]
    timestamp: String,
    timestamp_unix: i64,
    cpu_count: u32,
    /// Of all CPUs together
    cpu_used_pct: f32,
    mem_used: u64,
    mem_total: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
    /// The same in MiB, without which the SDKs of the protocol's first version (1.2.0b0 to b6) cannot read the rest
    #[serde(rename = "memUsedMiB")]
    mem_used_mib: u64,
    /// See `memUsedMiB`
    #[serde(rename = "memTotalMiB")]
    mem_total_mib: u64,
}

/// The newest metrics of several sandboxes; those that have none are not among them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SandboxesMetrics {
    sandboxes: BTreeMap<String, SandboxMetric>,
}

/// A log, twice: as text and in parts.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogsV1 {
    logs: Vec<LogLine>,
    log_entries: Vec<LogEntryJson>,
}

/// A log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogsV2 {
    logs: Vec<LogEntryJson>,
}

#[derive(Debug, Serialize, ToSchema)]
struct LogLine {
    #[schema(format = DateTime)]
    timestamp: String,
    /// A JSON object with `level`, `logger`, `message` and what the entry is about
    line: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct LogEntryJson {
    #[schema(format = DateTime)]
    timestamp: String,
    message: String,
    level: LevelJson,
    /// `logger` (`agent`, or `process` for what processes print), `seq`, and for processes `pid`, `cmd`, `stream`
    fields: BTreeMap<String, String>,
}

/// What a sandbox's console shows.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Console {
    console: String,
}

/// The use of resources of a sandbox over time
///
/// Measured every five seconds while it runs; kept for an hour in full and for a day by the minute, also while it is paused.
#[utoipa::path(
    get, path = "/sandboxes/{id}/metrics", tag = "sandboxes", params(IdParam, MetricsQuery),
    responses((status = 200, description = "Oldest first", body = [SandboxMetric]), RefusedOne)
)]
pub(super) async fn metrics(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    QueryParams(query): QueryParams<MetricsQuery>,
) -> Result<Json<Vec<SandboxMetric>>, ApiError> {
    let (start, end) = (query.start.unwrap_or(i64::MIN), query.end.unwrap_or(i64::MAX));
    let points = state.sandboxes.metrics(&team, &id, start, end).await?;
    Ok(Json(points.into_iter().map(SandboxMetric::from).collect()))
}

/// The newest use of resources of several sandboxes
#[utoipa::path(
    get, path = "/sandboxes/metrics", tag = "sandboxes", params(NewestMetricsQuery),
    responses((status = 200, description = "By the sandbox's id", body = SandboxesMetrics), RefusedQuery)
)]
pub(super) async fn newest_metrics(
    State(state): Shared,
    Team(team): Team,
    QueryParams(query): QueryParams<NewestMetricsQuery>,
) -> Result<Json<SandboxesMetrics>, ApiError> {
    let named = query.sandbox_ids.split(',').map(str::trim).filter(|id| !id.is_empty());
    let ids: BTreeSet<SandboxId> =
        named.map(|id| SandboxPath::parse(id).map(|path| path.0)).collect::<Result<_, _>>()?;
    if ids.is_empty() || ids.len() > MAX_SANDBOXES {
        return Err(ApiError::bad_request(format!(
            "Invalid sandbox_ids: it has 1 to {MAX_SANDBOXES} ids of sandboxes, joined by commas"
        )));
    }
    let ids: Vec<SandboxId> = ids.into_iter().collect();
    let newest = state.sandboxes.newest_metrics(&team, &ids).await;
    let sandboxes = newest.into_iter().map(|(id, point)| (id.into(), point.into())).collect();
    Ok(Json(SandboxesMetrics { sandboxes }))
}

/// What happened in a sandbox and what its processes printed (first version)
#[utoipa::path(
    get, path = "/sandboxes/{id}/logs", tag = "sandboxes", params(IdParam, LogsV1Query),
    responses((status = 200, description = "Oldest first", body = LogsV1), RefusedOne)
)]
pub(super) async fn logs_v1(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    QueryParams(query): QueryParams<LogsV1Query>,
) -> Result<Json<LogsV1>, ApiError> {
    let cursor_us = query.start.map(|ms| ms.saturating_mul(1000));
    let query = LogQuery { cursor_us, limit: limit(query.limit)?, ..LogQuery::default() };
    let records = state.sandboxes.logs(&team, &id, query).await?;
    let logs = records.iter().map(LogLine::from).collect();
    Ok(Json(LogsV1 { logs, log_entries: records.into_iter().map(LogEntryJson::from).collect() }))
}

/// What happened in a sandbox and what its processes printed
///
/// Page through it with the time of the last entry as cursor; entries of that very millisecond come again, and are told
/// by their `seq`.
#[utoipa::path(
    get, path = "/v2/sandboxes/{id}/logs", tag = "sandboxes", params(IdParam, LogsV2Query),
    responses((status = 200, description = "In the order asked for", body = LogsV2), RefusedOne)
)]
pub(super) async fn logs_v2(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    QueryParams(query): QueryParams<LogsV2Query>,
) -> Result<Json<LogsV2>, ApiError> {
    let records = state.sandboxes.logs(&team, &id, query.into_query()?).await?;
    Ok(Json(LogsV2 { logs: records.into_iter().map(LogEntryJson::from).collect() }))
}

/// What the console of a sandbox shows: its kernel and its agent
///
/// Torpor's own. The last 64 KiB; nothing while it is paused.
#[utoipa::path(
    get, path = "/sandboxes/{id}/console", tag = "sandboxes", params(IdParam),
    responses((status = 200, description = "As text", body = Console), RefusedOne)
)]
pub(super) async fn console(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
) -> Result<Json<Console>, ApiError> {
    Ok(Json(Console { console: state.sandboxes.console_log(&team, &id).await? }))
}

fn limit(asked: Option<usize>) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(MAX_ENTRIES);
    match limit <= MAX_ENTRIES {
        true => Ok(limit),
        false => Err(ApiError::bad_request(format!("Invalid limit: it is 0 to {MAX_ENTRIES}"))),
    }
}

// === impl LogsV2Query ===

impl LogsV2Query {
    fn into_query(self) -> Result<LogQuery, ApiError> {
        let search = self.search.unwrap_or_default();
        if search.chars().count() > MAX_SEARCH_CHARS {
            return Err(ApiError::bad_request(format!(
                "Invalid search: it has {MAX_SEARCH_CHARS} characters at most"
            )));
        }
        let direction = match self.direction.unwrap_or(DirectionJson::Forward) {
            DirectionJson::Forward => Direction::Forward,
            DirectionJson::Backward => Direction::Backward,
        };
        // Backwards the whole of the millisecond is included.
        let within_us = if direction == Direction::Backward { 999 } else { 0 };
        Ok(LogQuery {
            cursor_us: self.cursor.map(|ms| ms.saturating_mul(1000).saturating_add(within_us)),
            limit: limit(self.limit)?,
            direction,
            min_level: self.level.map_or(LogLevel::Debug, LogLevel::from),
            search,
        })
    }
}

// === impl LevelJson ===

impl From<LevelJson> for LogLevel {
    fn from(level: LevelJson) -> Self {
        match level {
            LevelJson::Debug => LogLevel::Debug,
            LevelJson::Info => LogLevel::Info,
            LevelJson::Warn => LogLevel::Warn,
            LevelJson::Error => LogLevel::Error,
        }
    }
}

impl From<LogLevel> for LevelJson {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Debug => LevelJson::Debug,
            LogLevel::Info => LevelJson::Info,
            LogLevel::Warn => LevelJson::Warn,
            LogLevel::Error => LevelJson::Error,
        }
    }
}

// === impl SandboxMetric ===

impl From<MetricPoint> for SandboxMetric {
    fn from(point: MetricPoint) -> Self {
        Self {
            timestamp: time_text(point.at),
            timestamp_unix: point.at.as_second(),
            cpu_count: point.cpu_count,
            cpu_used_pct: point.cpu_used_pct,
            mem_used: point.mem_used,
            mem_total: point.mem_total,
            mem_cache: point.mem_cache,
            disk_used: point.disk_used,
            disk_total: point.disk_total,
            mem_used_mib: point.mem_used >> 20,
            mem_total_mib: point.mem_total >> 20,
        }
    }
}

// === impl LogLine ===

impl From<&LogRecord> for LogLine {
    fn from(record: &LogRecord) -> Self {
        let mut line = json!({
            "level": record.level.as_str(),
            "logger": record.logger,
            "message": record.message,
        });
        if let Value::Object(line) = &mut line {
            line.extend(record.fields.iter().map(|(name, value)| (name.clone(), json!(value))));
        }
        Self { timestamp: moment(record), line: line.to_string() }
    }
}

// === impl LogEntryJson ===

impl From<LogRecord> for LogEntryJson {
    fn from(record: LogRecord) -> Self {
        let timestamp = moment(&record);
        let mut fields = record.fields;
        fields.insert("logger".to_owned(), record.logger);
        fields.insert("seq".to_owned(), record.seq.to_string());
        Self { timestamp, message: record.message, level: record.level.into(), fields }
    }
}

fn moment(record: &LogRecord) -> String {
    time_text(Timestamp::from_microsecond(record.at_us).unwrap_or(Timestamp::UNIX_EPOCH))
}

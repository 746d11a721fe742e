//! The handlers of `/sandboxes…`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::egress::NetworkUpdate;
use super::error::ApiError;
use super::extract::{JsonBody, SandboxPath, Team};
use super::idempotency::{IdempotencyKey, create_once};
use super::list::ListQuery;
use super::state::ApiState;
use super::wire::{
    CreateVersion, ListedSandbox, NewSandbox, PauseRequest, RefreshRequest, ResumeRequest, Sandbox,
    SandboxDetail, TimeoutRequest, on_timeout, time_text,
};
use crate::lifecycle::{Connected, DEFAULT_TIMEOUT_S, LEGACY_TIMEOUT_S, VisibleState};

type Shared = State<Arc<ApiState>>;

/// The most seconds a `refreshes` may ask for.
const MAX_REFRESH_S: i64 = 3600;

pub(super) async fn create_v1(
    state: Shared,
    team: Team,
    headers: HeaderMap,
    body: JsonBody<NewSandbox>,
) -> Result<Response, ApiError> {
    create(state, team, &headers, body, CreateVersion::V1).await
}

pub(super) async fn create_v2(
    state: Shared,
    team: Team,
    headers: HeaderMap,
    body: JsonBody<NewSandbox>,
) -> Result<Response, ApiError> {
    create(state, team, &headers, body, CreateVersion::V2).await
}

async fn create(
    State(state): Shared,
    Team(team): Team,
    headers: &HeaderMap,
    JsonBody(body): JsonBody<NewSandbox>,
    version: CreateVersion,
) -> Result<Response, ApiError> {
    let key = IdempotencyKey::read(headers)?;
    let request = body.into_create(version)?;
    let view = match key {
        Some(key) => create_once(state.clone(), team, key, request).await?,
        None => state.sandboxes.create(&team, request).await?,
    };
    let domain = state.options.domain.as_deref();
    Ok((StatusCode::CREATED, Json(Sandbox::new(view, domain))).into_response())
}

/// `GET /sandboxes`, which SDKs before 2.0 call: running ones, unpaged.
pub(super) async fn list_v1(
    State(state): Shared,
    Team(team): Team,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<ListedSandbox>>, ApiError> {
    let list = ListQuery {
        metadata: ListQuery::metadata_of(&query.unwrap_or_default()),
        states: vec![VisibleState::Running],
        limit: usize::MAX,
        ..ListQuery::default()
    };
    let page = list.page(state.sandboxes.list(&team).await);
    Ok(Json(page.sandboxes.into_iter().map(ListedSandbox::from).collect()))
}

pub(super) async fn list_v2(
    State(state): Shared,
    Team(team): Team,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let page = ListQuery::parse(&query.unwrap_or_default())?.page(state.sandboxes.list(&team).await);
    let mut headers = HeaderMap::new();
    if let Some(token) = page.next_token.and_then(|token| HeaderValue::try_from(token).ok()) {
        headers.insert("x-next-token", token);
    }
    if let Some(total) = page.total_running {
        headers.insert("x-total-running", HeaderValue::from(total));
    }
    let sandboxes: Vec<ListedSandbox> = page.sandboxes.into_iter().map(ListedSandbox::from).collect();
    Ok((headers, Json(sandboxes)).into_response())
}

pub(super) async fn get(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
) -> Result<Json<SandboxDetail>, ApiError> {
    let view = state.sandboxes.get(&team, &id).await?;
    Ok(Json(SandboxDetail::new(view, state.options.domain.as_deref())))
}

pub(super) async fn kill(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    state.sandboxes.kill(&team, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn pause(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<PauseRequest>,
) -> Result<StatusCode, ApiError> {
    let (keep_memory, wait_durable) = (body.memory.unwrap_or(true), body.wait_durable.unwrap_or(false));
    state.sandboxes.pause(&team, &id, keep_memory, wait_durable).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn resume(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<ResumeRequest>,
) -> Result<Response, ApiError> {
    refuse_cold_boot(&body)?;
    let timeout_s = body.timeout.unwrap_or(LEGACY_TIMEOUT_S);
    let view = state.sandboxes.resume(&team, &id, timeout_s, body.auto_pause.map(on_timeout)).await?;
    let domain = state.options.domain.as_deref();
    Ok((StatusCode::CREATED, Json(Sandbox::new(view, domain))).into_response())
}

pub(super) async fn connect_v1(
    state: Shared,
    team: Team,
    id: SandboxPath,
    body: JsonBody<ResumeRequest>,
) -> Result<Response, ApiError> {
    if body.0.timeout.is_none() {
        return Err(ApiError::bad_request("Invalid request body: missing field `timeout`"));
    }
    connect_v2(state, team, id, body).await
}

pub(super) async fn connect_v2(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<ResumeRequest>,
) -> Result<Response, ApiError> {
    refuse_cold_boot(&body)?;
    let timeout_s = body.timeout.unwrap_or(DEFAULT_TIMEOUT_S);
    let (view, connected) = state.sandboxes.connect(&team, &id, timeout_s).await?;
    let status = match connected {
        Connected::AlreadyRunning => StatusCode::OK,
        Connected::Resumed => StatusCode::CREATED,
    };
    Ok((status, Json(Sandbox::new(view, state.options.domain.as_deref()))).into_response())
}

pub(super) async fn set_timeout(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<TimeoutRequest>,
) -> Result<StatusCode, ApiError> {
    state.sandboxes.set_timeout(&team, &id, body.timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn set_network(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<NetworkUpdate>,
) -> Result<StatusCode, ApiError> {
    let (egress, allow_internet) = body.into_egress()?;
    state.sandboxes.set_egress(&team, &id, egress, allow_internet).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn refresh(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<RefreshRequest>,
) -> Result<StatusCode, ApiError> {
    let duration_s = body.duration.unwrap_or(LEGACY_TIMEOUT_S);
    if !(0..=MAX_REFRESH_S).contains(&duration_s) {
        return Err(ApiError::bad_request(format!("Invalid duration: it is 0 to {MAX_REFRESH_S} seconds")));
    }
    state.sandboxes.refresh(&team, &id, duration_s).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The guest's console. Its lines carry no time of their own, so that they get the sandbox's start; each `line` is
/// itself JSON, as clients expect.
pub(super) async fn logs(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
) -> Result<Json<Value>, ApiError> {
    let view = state.sandboxes.get(&team, &id).await?;
    let console = state.sandboxes.console_log(&team, &id).await?;
    let timestamp = time_text(view.started_at);
    let messages: Vec<&str> = console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let line = |message: &&str| {
        let line = json!({"level": "info", "logger": "console", "message": message}).to_string();
        json!({"timestamp": timestamp, "line": line})
    };
    let entry = |message: &&str| json!({"timestamp": timestamp, "level": "info", "message": message, "fields": {"logger": "console"}});
    Ok(Json(json!({
        "logs": messages.iter().map(line).collect::<Vec<_>>(),
        "logEntries": messages.iter().map(entry).collect::<Vec<_>>(),
    })))
}

fn refuse_cold_boot(body: &ResumeRequest) -> Result<(), ApiError> {
    match body.memory {
        Some(false) => Err(ApiError::bad_request(
            "memory=false: a sandbox that was paused with its memory is not started without it on this server; leave it out",
        )
        .with_code("sandbox_memory_override_disabled")),
        Some(true) | None => Ok(()),
    }
}

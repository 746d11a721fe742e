//! The handlers of `/sandboxes…`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::egress::NetworkUpdate;
use super::error::ApiError;
use super::extract::{JsonBody, QueryParams, SandboxPath, Team};
use super::idempotency::{IdempotencyKey, KeyParam, create_once};
use super::list::{ListParams, ListQuery, MetadataParam};
use super::openapi::{
    IdParam, RefusedChange, RefusedCopy, RefusedCreate, RefusedOne, RefusedQuery, RefusedStart,
};
use super::state::ApiState;
use super::wire::{
    ConnectRequest, CreateVersion, ListedSandbox, NewSandbox, PauseHeader, PauseParams, PauseRequest,
    RefreshRequest, ResumeRequest, Sandbox, SandboxDetail, TimeoutRequest, on_timeout,
};
use crate::lifecycle::{Connected, DEFAULT_TIMEOUT_S, LEGACY_TIMEOUT_S, VisibleState};

type Shared = State<Arc<ApiState>>;

/// The most seconds a `refreshes` may ask for.
const MAX_REFRESH_S: i64 = 3600;

/// Create a sandbox (first version)
///
/// It lives 15 seconds unless told otherwise, and its agent demands a token only if `secure` is true.
#[utoipa::path(
    post, path = "/sandboxes", tag = "sandboxes", params(KeyParam), request_body = NewSandbox,
    responses((status = 201, description = "It runs", body = Sandbox), RefusedCreate)
)]
pub(super) async fn create_v1(
    state: Shared,
    team: Team,
    headers: HeaderMap,
    body: JsonBody<NewSandbox>,
) -> Result<Response, ApiError> {
    create(state, team, &headers, body, CreateVersion::V1).await
}

/// Create a sandbox
///
/// It lives 300 seconds unless told otherwise, and its agent demands a token.
#[utoipa::path(
    post, path = "/v2/sandboxes", tag = "sandboxes", params(KeyParam), request_body = NewSandbox,
    responses((status = 201, description = "It runs", body = Sandbox), RefusedCreate)
)]
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

/// List running sandboxes (first version): all of them, newest first
#[utoipa::path(
    get, path = "/sandboxes", tag = "sandboxes", params(MetadataParam),
    responses((status = 200, description = "Newest first", body = [ListedSandbox]), RefusedQuery)
)]
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
    let page = state.sandboxes.list(&team, &list).await;
    Ok(Json(page.sandboxes.into_iter().map(ListedSandbox::from).collect()))
}

/// List sandboxes, running and paused, page by page
#[utoipa::path(
    get, path = "/v2/sandboxes", tag = "sandboxes", params(MetadataParam, ListParams),
    responses(
        (
            status = 200, description = "One page", body = [ListedSandbox],
            headers(
                ("x-next-token" = String, description = "Names the next page; absent on the last"),
                ("x-total-running" = u64, description = "How many running ones match; absent if none were asked for"),
            )
        ),
        RefusedQuery
    )
)]
pub(super) async fn list_v2(
    State(state): Shared,
    Team(team): Team,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let page = state.sandboxes.list(&team, &ListQuery::parse(&query.unwrap_or_default())?).await;
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

/// Describe a sandbox
#[utoipa::path(
    get, path = "/sandboxes/{id}", tag = "sandboxes", params(IdParam),
    responses((status = 200, description = "As it is now", body = SandboxDetail), RefusedOne)
)]
pub(super) async fn get(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
) -> Result<Json<SandboxDetail>, ApiError> {
    let view = state.sandboxes.get(&team, &id).await?;
    Ok(Json(SandboxDetail::new(view, state.options.domain.as_deref())))
}

/// Kill a sandbox, running or paused, with everything in it
#[utoipa::path(
    delete, path = "/sandboxes/{id}", tag = "sandboxes", params(IdParam),
    responses((status = 204, description = "It is gone"), RefusedOne)
)]
pub(super) async fn kill(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
) -> Result<StatusCode, ApiError> {
    state.sandboxes.kill(&team, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pause a sandbox: files, memory and processes are kept
///
/// Torpor's own: `waitDurable` (in the query, in the body, or as the header `Torpor-Wait-Durable`; one that says true is
/// enough) has it answer only when the pause would survive a power cut.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pause", tag = "sandboxes", params(IdParam, PauseParams, PauseHeader),
    request_body = Option<PauseRequest>,
    responses((status = 204, description = "It is paused"), RefusedCopy)
)]
pub(super) async fn pause(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    QueryParams(query): QueryParams<PauseParams>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<PauseRequest>,
) -> Result<StatusCode, ApiError> {
    let keep_memory = body.memory.unwrap_or(true);
    let said = [body.wait_durable, query.wait_durable, PauseHeader::read(&headers)?.wait_durable];
    let wait_durable = said.contains(&Some(true));
    state.sandboxes.pause(&team, &id, keep_memory, wait_durable).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Resume a paused sandbox (first version)
///
/// It lives 15 seconds unless told otherwise. With `memory: false` it boots from its disk, and what ran in it is lost.
#[utoipa::path(
    post, path = "/sandboxes/{id}/resume", tag = "sandboxes", params(IdParam), request_body = Option<ResumeRequest>,
    responses((status = 201, description = "It runs again", body = Sandbox), RefusedStart)
)]
pub(super) async fn resume(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<ResumeRequest>,
) -> Result<Response, ApiError> {
    let keep_memory = body.memory.unwrap_or(true);
    let timeout_s = body.timeout.unwrap_or(LEGACY_TIMEOUT_S);
    let on_timeout = body.auto_pause.map(on_timeout);
    let view = state.sandboxes.resume(&team, &id, timeout_s, on_timeout, keep_memory).await?;
    let domain = state.options.domain.as_deref();
    Ok((StatusCode::CREATED, Json(Sandbox::new(view, domain))).into_response())
}

/// Resume a sandbox if it is paused, extend its life if it runs (first version: `timeout` is required)
#[utoipa::path(
    post, path = "/sandboxes/{id}/connect", tag = "sandboxes", params(IdParam), request_body = ConnectRequest,
    responses(
        (status = 200, description = "It ran already", body = Sandbox),
        (status = 201, description = "It runs again", body = Sandbox),
        RefusedStart
    )
)]
pub(super) async fn connect_v1(
    state: Shared,
    team: Team,
    id: SandboxPath,
    JsonBody(body): JsonBody<ConnectRequest>,
) -> Result<Response, ApiError> {
    let ConnectRequest { timeout, memory } = body;
    let body = ResumeRequest { timeout: Some(timeout), auto_pause: None, memory };
    connect_v2(state, team, id, JsonBody(body)).await
}

/// Resume a sandbox if it is paused, extend its life if it runs
///
/// It lives 300 seconds unless told otherwise; a running one never gets less than it had. With `memory: false` a paused one
/// boots from its disk, and what ran in it is lost.
#[utoipa::path(
    post, path = "/v2/sandboxes/{id}/connect", tag = "sandboxes", params(IdParam),
    request_body = Option<ResumeRequest>,
    responses(
        (status = 200, description = "It ran already", body = Sandbox),
        (status = 201, description = "It runs again", body = Sandbox),
        RefusedStart
    )
)]
pub(super) async fn connect_v2(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<ResumeRequest>,
) -> Result<Response, ApiError> {
    let keep_memory = body.memory.unwrap_or(true);
    let timeout_s = body.timeout.unwrap_or(DEFAULT_TIMEOUT_S);
    let (view, connected) = state.sandboxes.connect(&team, &id, timeout_s, keep_memory).await?;
    let status = match connected {
        Connected::AlreadyRunning => StatusCode::OK,
        Connected::Resumed => StatusCode::CREATED,
    };
    Ok((status, Json(Sandbox::new(view, state.options.domain.as_deref()))).into_response())
}

/// Set when a running sandbox ends: that many seconds from now, at once if 0 or less
#[utoipa::path(
    post, path = "/sandboxes/{id}/timeout", tag = "sandboxes", params(IdParam), request_body = TimeoutRequest,
    responses((status = 204, description = "It ends then"), RefusedChange)
)]
pub(super) async fn set_timeout(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<TimeoutRequest>,
) -> Result<StatusCode, ApiError> {
    state.sandboxes.set_timeout(&team, &id, body.timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replace what a sandbox may reach: what is left out is cleared
#[utoipa::path(
    put, path = "/sandboxes/{id}/network", tag = "sandboxes", params(IdParam), request_body = Option<NetworkUpdate>,
    responses((status = 204, description = "It is in effect"), RefusedChange)
)]
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

/// Let a running sandbox live that many seconds from now, if it would not anyway
#[utoipa::path(
    post, path = "/sandboxes/{id}/refreshes", tag = "sandboxes", params(IdParam), request_body = Option<RefreshRequest>,
    responses((status = 204, description = "It lives that long"), RefusedChange)
)]
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

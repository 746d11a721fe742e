//! The handlers of snapshots and forks (protocol sections 1.2 and 7.5).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use torpor_types::SandboxId;
use utoipa::{IntoParams, ToSchema};

use super::error::ApiError;
use super::extract::{JsonBody, SandboxPath, Team};
use super::openapi::{IdParam, RefusedCopy, RefusedOne, RefusedQuery};
use super::state::ApiState;
use super::wire::Sandbox;
use crate::lifecycle::SnapshotView;

type Shared = State<Arc<ApiState>>;

/// Seconds a child of a fork lives when nobody says.
const DEFAULT_FORK_TIMEOUT_S: i64 = 15;
/// Children of one fork, at most.
const MAX_CHILDREN: usize = 100;
/// Entries of a page, at most and by default.
const MAX_LIMIT: usize = 100;

/// Body of `POST …/snapshots`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(super) struct SnapshotRequest {
    name: Option<String>,
    memory: Option<bool>,
}

/// Body of `POST …/fork`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(super) struct ForkRequest {
    /// Seconds each child lives
    #[schema(minimum = 1, default = 15)]
    timeout: Option<i64>,
    #[schema(minimum = 1, maximum = 100, default = 1)]
    count: Option<usize>,
}

/// One snapshot.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct SnapshotInfo {
    #[serde(rename = "snapshotID")]
    snapshot_id: String,
    names: Vec<String>,
}

/// What became of one child of a fork.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Child {
    Sandbox(Box<Sandbox>),
    Error(super::error::Body),
}

/// The same, as the document describes it.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "only its description is used")]
pub(super) struct ListParams {
    /// Only those of this sandbox
    #[param(rename = "sandboxID", pattern = "^[0-9a-z]{1,64}$")]
    sandbox_id: Option<String>,
    /// Only those of this name
    name: Option<String>,
    /// Entries of a page
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<i32>,
    /// From the header `X-Next-Token` of the page before
    #[param(rename = "nextToken")]
    next_token: Option<String>,
}

/// What a client asked to see of its snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Query {
    source: Option<SandboxId>,
    name: Option<String>,
    limit: usize,
    /// Id of the last snapshot of the page before.
    after: Option<String>,
}

/// Take a snapshot of a running sandbox, which goes on
///
/// New sandboxes start from it as from a template.
#[utoipa::path(
    post, path = "/sandboxes/{id}/snapshots", tag = "snapshots", params(IdParam), request_body = Option<SnapshotRequest>,
    responses((status = 201, description = "It is durable", body = SnapshotInfo), RefusedCopy)
)]
pub(super) async fn take(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<SnapshotRequest>,
) -> Result<Response, ApiError> {
    let name = body.name.as_deref().filter(|name| !name.is_empty());
    let taken = state.sandboxes.snapshot(&team, &id, name, body.memory.unwrap_or(true)).await?;
    Ok((StatusCode::CREATED, Json(SnapshotInfo::from(taken))).into_response())
}

/// Make new sandboxes that go on where a running one is, which itself goes on
///
/// Each child succeeds or fails on its own.
#[utoipa::path(
    post, path = "/sandboxes/{id}/fork", tag = "snapshots", params(IdParam), request_body = Option<ForkRequest>,
    responses((status = 201, description = "What became of each child", body = [Child]), RefusedCopy)
)]
pub(super) async fn fork(
    State(state): Shared,
    Team(team): Team,
    SandboxPath(id): SandboxPath,
    JsonBody(body): JsonBody<ForkRequest>,
) -> Result<Response, ApiError> {
    let count = body.count.unwrap_or(1);
    if !(1..=MAX_CHILDREN).contains(&count) {
        return Err(ApiError::bad_request(format!(
            "Invalid count: a fork makes 1 to {MAX_CHILDREN} sandboxes"
        )));
    }
    let timeout_s = body.timeout.unwrap_or(DEFAULT_FORK_TIMEOUT_S);
    let children = state.sandboxes.fork(&team, &id, timeout_s, count).await?;
    let domain = state.options.domain.as_deref();
    let children = children.into_iter().map(|child| match child {
        Ok(view) => Child::Sandbox(Box::new(Sandbox::new(view, domain))),
        Err(error) => Child::Error(ApiError::from(error).into_body()),
    });
    Ok((StatusCode::CREATED, Json(children.collect::<Vec<_>>())).into_response())
}

/// List snapshots, page by page
#[utoipa::path(
    get, path = "/snapshots", tag = "snapshots", params(ListParams),
    responses(
        (
            status = 200, description = "One page", body = [SnapshotInfo],
            headers(("x-next-token" = String, description = "Names the next page; absent on the last"))
        ),
        RefusedQuery
    )
)]
pub(super) async fn list(
    State(state): Shared,
    Team(team): Team,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = Query::parse(&query.unwrap_or_default())?;
    let all = state.sandboxes.snapshots(&team, query.source.as_ref(), query.name.as_deref()).await?;
    let start = match &query.after {
        // A snapshot that went meanwhile: from the start again rather than nothing.
        Some(after) => all.iter().position(|view| view.id == *after).map_or(0, |at| at + 1),
        None => 0,
    };
    let rest = all.get(start..).unwrap_or_default();
    let page = &rest[..rest.len().min(query.limit)];
    let mut headers = HeaderMap::new();
    if let Some(last) = page.last().filter(|_| page.len() < rest.len())
        && let Ok(token) = HeaderValue::try_from(URL_SAFE_NO_PAD.encode(&last.id))
    {
        headers.insert("x-next-token", token);
    }
    let page: Vec<SnapshotInfo> = page.iter().cloned().map(SnapshotInfo::from).collect();
    Ok((headers, Json(page)).into_response())
}

/// Delete a snapshot
///
/// One that sandboxes stand on is refused. Templates that the operator made are not the API's to delete.
#[utoipa::path(
    delete, path = "/templates/{id}", tag = "snapshots",
    params(("id" = String, Path, description = "Id of the snapshot, percent-encoded", example = "team/name:tag")),
    responses((status = 204, description = "It is gone"), RefusedOne)
)]
pub(super) async fn delete(
    State(state): Shared,
    Team(team): Team,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    if state.registry.template(&id).await?.is_some() {
        return Err(ApiError::bad_request(format!(
            "'{id}' is a template of this server, which `torpor setup` makes; only snapshots are deleted here"
        )));
    }
    state.sandboxes.delete_snapshot(&team, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

// === impl SnapshotInfo ===

impl From<SnapshotView> for SnapshotInfo {
    fn from(view: SnapshotView) -> Self {
        Self { snapshot_id: view.id, names: view.names }
    }
}

// === impl Query ===

impl Query {
    fn parse(query: &str) -> Result<Query, ApiError> {
        let mut parsed = Query { limit: MAX_LIMIT, ..Query::default() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()).filter(|(_, value)| !value.is_empty()) {
            match name.as_ref() {
                "sandboxID" => parsed.source = Some(SandboxPath::parse(&value)?.0),
                "name" => parsed.name = Some(value.into_owned()),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                    let wrong = || ApiError::bad_request(format!("Invalid limit: it is 1 to {MAX_LIMIT}"));
                    parsed.limit = limit.ok_or_else(wrong)?;
                }
                "nextToken" => {
                    let id = URL_SAFE_NO_PAD.decode(value.as_bytes()).ok();
                    let id = id.and_then(|bytes| String::from_utf8(bytes).ok());
                    parsed.after = Some(id.ok_or_else(|| ApiError::bad_request("Invalid next token"))?);
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_of_snapshots_is_read_and_a_wrong_one_refused() {
        let query = Query::parse("sandboxID=iabc-0000&name=x%3Av1&limit=7&nextToken=ZGVmYXVsdC94").unwrap();
        let expected = Query {
            source: Some("iabc".parse().unwrap()),
            name: Some("x:v1".to_owned()),
            limit: 7,
            after: Some("default/x".to_owned()),
        };
        assert_eq!(query, expected);
        for wrong in ["limit=0", "limit=101", "limit=x", "nextToken=%21", "sandboxID=A_B"] {
            assert!(Query::parse(wrong).is_err(), "{wrong}");
        }
    }
}

//! `GET /teams`, by which the CLI finds out whose key it has.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::{PresentedKey, Team};
use super::openapi::Refused;
use super::state::ApiState;

/// A team, as its members see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Team)]
pub(super) struct TeamJson {
    #[serde(rename = "teamID")]
    team_id: String,
    name: String,
    /// The key that came with the request. Keys are not stored, so there is no other to give.
    api_key: String,
    is_default: bool,
}

/// The team of the key
#[utoipa::path(
    get, path = "/teams", tag = "teams",
    responses((status = 200, description = "Just that one", body = [TeamJson]), Refused)
)]
pub(super) async fn list(
    State(state): State<Arc<ApiState>>,
    Team(id): Team,
    PresentedKey(key): PresentedKey,
) -> Result<Json<Vec<TeamJson>>, ApiError> {
    let team = state.registry.team(&id).await?.ok_or_else(|| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "The database has the key and not its team")
    })?;
    let api_key = key.reveal().to_owned();
    Ok(Json(vec![TeamJson { team_id: team.id.into(), name: team.name, api_key, is_default: true }]))
}

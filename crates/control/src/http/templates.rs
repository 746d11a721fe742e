//! The handlers of `/templates…`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::error::ApiError;
use super::extract::Team;
use super::openapi::Refused;
use super::state::ApiState;
use super::wire::Template;

/// The templates there are (first version)
#[utoipa::path(
    get, path = "/templates", tag = "templates",
    responses((status = 200, description = "By name", body = [Template]), Refused)
)]
pub(super) async fn list_v1(
    state: State<Arc<ApiState>>,
    team: Team,
) -> Result<Json<Vec<Template>>, ApiError> {
    list(state, team).await
}

/// The templates there are
#[utoipa::path(
    get, path = "/v2/templates", tag = "templates",
    responses((status = 200, description = "By name", body = [Template]), Refused)
)]
pub(super) async fn list_v2(
    state: State<Arc<ApiState>>,
    team: Team,
) -> Result<Json<Vec<Template>>, ApiError> {
    list(state, team).await
}

async fn list(State(state): State<Arc<ApiState>>, _: Team) -> Result<Json<Vec<Template>>, ApiError> {
    Ok(Json(state.registry.templates().await?.into_iter().map(Template::from).collect()))
}

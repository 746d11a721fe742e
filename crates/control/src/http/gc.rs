//! `/admin/gc`: removing what was kept long enough, of all teams. For the operator, who has the node's own key.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::error::ApiError;
use super::extract::Operator;
use super::openapi::RefusedOperator;
use super::state::ApiState;
use crate::lifecycle::{CollectError, Collected};
use crate::retention::Plan;

type Shared = State<Arc<ApiState>>;

/// Say what a collection would remove now (operator)
#[utoipa::path(
    get, path = "/admin/gc", tag = "server",
    responses((status = 200, description = "The plan", body = Plan), RefusedOperator)
)]
pub(super) async fn plan(State(state): Shared, _: Operator) -> Result<Json<Plan>, ApiError> {
    Ok(Json(state.sandboxes.plan_collection().await?))
}

/// Remove what was kept long enough (operator)
///
/// The server does so by itself, every hour and at its start.
#[utoipa::path(
    post, path = "/admin/gc", tag = "server",
    responses((status = 200, description = "What was removed", body = Collected), RefusedOperator)
)]
pub(super) async fn collect(State(state): Shared, _: Operator) -> Result<Json<Collected>, ApiError> {
    Ok(Json(state.sandboxes.collect().await?))
}

impl From<CollectError> for ApiError {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Lifecycle(error) => error.into(),
            CollectError::Registry(error) => error.into(),
            CollectError::Measure(_) => {
                Self::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
                    .with_code("internal_server_error")
            }
        }
    }
}

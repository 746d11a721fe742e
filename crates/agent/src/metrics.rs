//! `GET /metrics`: the guest's use of CPU, memory and disk.

use axum::{Json, extract::State};
use torpor_envd_api::http::Metrics;

use crate::{error::HttpError, server::Shared};

/// The handler.
pub async fn get(State(_state): State<Shared>) -> Result<Json<Metrics>, HttpError> {
    Ok(Json(Metrics::default()))
}

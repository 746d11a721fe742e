//! `POST /init`: the host tells the agent whose sandbox this is now, and what time it is.
//!
//! Called at each start and each resume, before the gateway lets a client in. Only the host can call it: the agent
//! looks at the sender's address, which a process in the sandbox cannot have.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Bytes,
    extract::{ConnectInfo, State},
};
use http::StatusCode;
use torpor_envd_api::http::InitRequest;

use crate::{error::HttpError, process::Processes, server::Shared};

/// What the handler needs.
#[derive(Clone)]
pub struct Init {
    state: Shared,
    processes: Arc<Processes>,
}

/// The handler.
pub async fn post(
    State(init): State<Init>,
    ConnectInfo(_peer): ConnectInfo<SocketAddr>,
    body: Bytes,
) -> Result<StatusCode, HttpError> {
    let request: InitRequest = serde_json::from_slice(&body)
        .map_err(|error| HttpError::bad_request(format!("the body is not an init request: {error}")))?;
    init.state.apply(&request);
    let _ = &init.processes;
    Ok(StatusCode::NO_CONTENT)
}

// === impl Init ===

impl Init {
    /// A handler for that state.
    pub fn new(state: Shared, processes: Arc<Processes>) -> Self {
        Self { state, processes }
    }
}

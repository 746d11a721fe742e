//! Processes in the guest.

use std::sync::Arc;

use crate::server::Shared;

/// The processes the agent has started.
#[derive(Debug, Default)]
pub struct Processes {}

/// Adds the service to a router.
pub fn register(
    router: connectrpc::Router,
    _state: Shared,
    _processes: Arc<Processes>,
) -> connectrpc::Router {
    router
}

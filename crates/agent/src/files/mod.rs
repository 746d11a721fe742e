//! Files in the guest: `filesystem.Filesystem`, its watchers, and the HTTP endpoint `/files`.

use axum::Router;

use crate::server::Shared;

/// Adds the service to a router of Connect services.
pub fn register(router: connectrpc::Router, _state: Shared) -> connectrpc::Router {
    router
}

/// The plain HTTP endpoints. They check the access token themselves, see [`crate::auth::check_files`].
pub fn http_routes(_state: Shared) -> Router {
    Router::new()
}

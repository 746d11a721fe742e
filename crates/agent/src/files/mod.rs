//! Files in the guest, for clients outside: the RPC service `filesystem.Filesystem` and the endpoint `/files`.
//!
//! Every operation is made by the agent, which is root, in the name of one of the sandbox's users: relative paths
//! start in that user's home, and what is made belongs to that user. The user's own rights are not asked for:
//! whoever holds the sandbox's access token may name any user, root included.
//!
//! | part | module |
//! |---|---|
//! | RPCs | `service`, over `operations`, `entry`, `across` |
//! | watching directories | `watch` |
//! | `GET /files` | `download`, with `range`, `encoding`, `disposition` |
//! | `POST /files`, `POST /files/compose` | `upload`, `compose`, with `body`, `form`, `place` |
//! | a file's metadata | `metadata` |
//! | every error, for both faces | `error` |
//!
//! File systems block, so everything that touches one runs on the threads kept for that ([`error::off_thread`]);
//! what waits for clients runs on the asynchronous ones.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use http::HeaderMap;
use torpor_envd_api::filesystem::FilesystemExt;
use torpor_envd_api::http::FilesQuery;
use torpor_envd_api::signature::Operation;

use self::error::FileError;
use crate::auth::{check_files, query_user};
use crate::paths;
use crate::server::Shared;
use crate::users::User;

mod across;
mod body;
mod compose;
mod disposition;
mod download;
mod encoding;
mod entry;
mod error;
mod form;
mod metadata;
mod mode;
mod mount;
mod operations;
mod place;
mod range;
mod service;
mod upload;
mod watch;

#[doc(hidden)]
pub use form::read_form;

/// Adds the service to a router of Connect services.
pub fn register(router: connectrpc::Router, state: Shared) -> connectrpc::Router {
    Arc::new(service::FilesService::new(state)).register(router)
}

/// The plain HTTP endpoints. They check the access token themselves, see [`crate::auth::check_files`].
pub fn http_routes(state: Shared) -> Router {
    Router::new()
        .route("/files", get(download::get).post(upload::post))
        .route("/files/compose", post(compose::post))
        .with_state(state)
}

/// The user a request to `/files` acts as, if it may do so at all.
fn authorize(
    state: &Shared,
    headers: &HeaderMap,
    query: &FilesQuery,
    operation: Operation,
) -> Result<User, FileError> {
    check_files(state, headers, query, operation)?;
    Ok(query_user(state, query.username.as_deref())?)
}

/// The absolute path that a user means by `path`.
fn resolve_path(state: &Shared, user: &User, path: &str) -> Result<PathBuf, FileError> {
    Ok(paths::resolve(path, user, state.settings().default_workdir.as_deref())?)
}

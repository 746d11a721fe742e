//! `POST /freeze` and `POST /unfreeze`: the root file system stands still while the host copies the disk alone.
//!
//! A pause without memory keeps what is on the disk. Freezing writes everything to it that programs have written
//! and makes whoever writes more wait, so that the copy is a file system in order, with every file as it was. Only the
//! host may ask for it; each `init` thaws, for the case that the pause did not come about.

use std::{io, net::SocketAddr, path::Path};

use axum::extract::{ConnectInfo, State};
use http::StatusCode;

use crate::{error::HttpError, init::only_host, server::Shared};

const ROOT: &str = "/";

/// The handler of `/freeze`.
pub async fn freeze_handler(
    State(state): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Result<StatusCode, HttpError> {
    only_host(&state, peer)?;
    if state.options().owns_machine {
        blocking("freezing", || torpor_sys::freeze::freeze(Path::new(ROOT))).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The handler of `/unfreeze`.
pub async fn unfreeze_handler(
    State(state): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Result<StatusCode, HttpError> {
    only_host(&state, peer)?;
    if state.options().owns_machine {
        thaw()?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Thaws the root file system if it is frozen.
pub fn thaw() -> Result<(), HttpError> {
    torpor_sys::freeze::thaw(Path::new(ROOT)).map_err(|error| failed("thawing", error))
}

async fn blocking(
    what: &'static str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), HttpError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
    done.map_err(|error| failed(what, error))
}

fn failed(what: &str, error: io::Error) -> HttpError {
    HttpError::internal(format!("{what} the root file system failed: {error}"))
}

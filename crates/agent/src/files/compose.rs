//! `POST /files/compose`: one file made of several.
//!
//! The parts are joined in a temporary file beside the destination, which then takes the destination's name in one
//! step: whatever fails on the way leaves destination and parts as they were. The parts are removed last.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use http::HeaderMap;
use torpor_envd_api::http::{ComposeRequest, WrittenFile, WrittenType};

use super::across::beside;
use super::error::{FileError, off_thread};
use super::metadata::{self, Metadata};
use super::place::{Owner, Target, open_target};
use super::{operations, resolve_path};
use crate::auth::query_user;
use crate::server::Shared;

/// Handles `POST /files/compose`.
pub(crate) async fn post(
    State(state): State<Shared>,
    headers: HeaderMap,
    request: Result<Json<ComposeRequest>, JsonRejection>,
) -> Result<Json<WrittenFile>, FileError> {
    let Json(request) =
        request.map_err(|error| FileError::Invalid(format!("invalid request body: {error}")))?;
    if request.source_paths.is_empty() {
        return Err(FileError::Invalid("source_paths must not be empty".into()));
    }
    if request.destination.is_empty() {
        return Err(FileError::Invalid("destination is required".into()));
    }
    let user = query_user(&state, request.username.as_deref())?;
    let owner = Owner { uid: user.uid, gid: user.gid };
    let destination = resolve_path(&state, &user, &request.destination)?;
    let sources = request
        .source_paths
        .iter()
        .map(|source| resolve_path(&state, &user, source))
        .collect::<Result<Vec<_>, _>>()?;
    let metadata = metadata::from_headers(&headers)?;
    off_thread(move || {
        compose(&sources, &destination, owner, &metadata)?;
        Ok(Json(WrittenFile {
            path: destination.to_string_lossy().into_owned(),
            name: destination.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            r#type: WrittenType::File,
            metadata: Some(metadata).filter(|metadata| !metadata.is_empty()),
        }))
    })
    .await
}

fn compose(
    sources: &[PathBuf],
    destination: &Path,
    owner: Owner,
    metadata: &Metadata,
) -> Result<(), FileError> {
    for source in sources {
        if source == destination {
            return Err(FileError::Invalid(format!(
                "source path '{}' cannot be the destination",
                source.display()
            )));
        }
        let found = fs::metadata(source).map_err(|error| FileError::from_io("reading", source, error))?;
        if !found.is_file() {
            return Err(FileError::NotRegular(source.clone()));
        }
    }
    let before = match fs::metadata(destination) {
        Ok(found) if found.is_dir() => return Err(FileError::IsADirectory(destination.to_owned())),
        found => found.ok(),
    };
    let temporary = beside(destination);
    let target = open_target(&temporary, owner)?;
    let joined = join(sources, &target, destination, metadata).and_then(|()| {
        if let Some(before) = before {
            target
                .file
                .set_permissions(before.permissions())
                .map_err(|error| FileError::from_io("changing the mode of", destination, error))?;
        }
        fs::rename(&temporary, destination)
            .map_err(|error| FileError::from_io("renaming to", destination, error))
    });
    if let Err(error) = joined {
        target.take_back();
        return Err(error);
    }
    sources.iter().try_for_each(|source| operations::remove(source))
}

fn join(
    sources: &[PathBuf],
    target: &Target,
    destination: &Path,
    metadata: &Metadata,
) -> Result<(), FileError> {
    for source in sources {
        let mut from = File::open(source).map_err(|error| FileError::from_io("opening", source, error))?;
        // Between files the kernel copies, or even shares, the blocks itself.
        io::copy(&mut from, &mut &target.file)
            .map_err(|error| FileError::from_io("joining", source, error))?;
    }
    metadata::replace(&target.file, destination, metadata)
}

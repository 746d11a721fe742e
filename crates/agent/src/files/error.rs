//! What can go wrong with a file operation, and how each protocol says it.
//!
//! One enum serves both faces of the agent's file service, because they share the operations beneath: RPC callers
//! see a Connect code, `/files` callers an HTTP status with `{"code": <status>, "message": …}`.

use std::io;
use std::path::{Path, PathBuf};

use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse, Response};
use connectrpc::{ConnectError, ErrorCode};
use http::StatusCode;
use rustix::io::Errno;

use super::encoding::CodingError;
use crate::error::HttpError;
use crate::paths::PathError;

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// Nothing is there.
    #[error("path '{}' does not exist", .0.display())]
    NotFound(PathBuf),
    /// The operation needs a file.
    #[error("path '{}' is a directory", .0.display())]
    IsADirectory(PathBuf),
    /// The operation needs a directory.
    #[error("path is not a directory: '{}'", .0.display())]
    NotADirectory(PathBuf),
    /// The directory to make is there already.
    #[error("directory already exists: '{}'", .0.display())]
    DirectoryExists(PathBuf),
    /// The path names a device, pipe or socket.
    #[error("path '{}' is not a regular file; only regular files can be transferred", .0.display())]
    NotRegular(PathBuf),
    /// Symbolic links that lead nowhere.
    #[error("cyclic symlink or too many links at '{}'", .0.display())]
    TooManyLinks(PathBuf),
    /// The request contradicts itself or asks for the impossible.
    #[error("{0}")]
    Invalid(String),
    /// What the rest of the agent refuses: a wrong token, an unknown user.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The file system cannot hold extended attributes.
    #[error("the file system of '{}' cannot store metadata (extended attributes); upload without metadata", .0.display())]
    NoMetadata(PathBuf),
    /// The metadata of one file exceeds what the file system stores.
    #[error("the metadata for '{}' is too large for its file system; use fewer or shorter values", .0.display())]
    MetadataTooLarge(PathBuf),
    /// The disk or the user's quota is full.
    #[error("not enough disk space available")]
    NoSpace,
    /// The client's choice of codings cannot be met.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// The client stopped sending, or sent what is not what it announced.
    #[error("error reading the request body: {0}")]
    Body(String),
    /// The client sent nothing for too long.
    #[error("no data arrived for {0} seconds; upload aborted")]
    BodyIdle(u64),
    /// Source and destination are on different file systems, and copying failed.
    #[error("cannot move '{}' to '{}' on another file system: {reason}", from.display(), to.display())]
    OtherFileSystem {
        /// What was to be moved.
        from: PathBuf,
        /// Where to.
        to: PathBuf,
        /// What stood in the way.
        reason: String,
    },
    /// A watcher that is not there, or no longer.
    #[error("watcher with id {0} not found")]
    NoWatcher(String),
    /// The watched directory lives on another machine.
    #[error("cannot watch path on network filesystem: '{}'; its events may be incomplete, pass allowNetworkMounts to watch all the same", .0.display())]
    NetworkMount(PathBuf),
    /// A bounded resource of the agent is used up.
    #[error("{0}")]
    Exhausted(String),
    /// Events happened that nobody can report any more.
    #[error("{0}")]
    EventsLost(String),
    /// The operating system refused.
    #[error("error {doing} '{}': {source}", path.display())]
    Io {
        /// What was being done, as in "error opening '/x'".
        doing: &'static str,
        /// With which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The agent itself failed.
    #[error("internal error: {0}")]
    Internal(String),
}

// === impl FileError ===

impl FileError {
    /// Files an operating system error under the case that callers can act on.
    pub(crate) fn from_io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT) => Self::NotFound(path.to_owned()),
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace,
            Some(Errno::LOOP) => Self::TooManyLinks(path.to_owned()),
            Some(Errno::NOTDIR) => Self::NotADirectory(path.to_owned()),
            Some(Errno::ISDIR) => Self::IsADirectory(path.to_owned()),
            Some(Errno::NAMETOOLONG) => Self::Invalid(format!("path '{}' is too long", path.display())),
            _ => Self::Io { doing, path: path.to_owned(), source },
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) | Self::NoWatcher(_) => StatusCode::NOT_FOUND,
            Self::IsADirectory(_)
            | Self::NotADirectory(_)
            | Self::NotRegular(_)
            | Self::TooManyLinks(_)
            | Self::Invalid(_)
            | Self::NoMetadata(_)
            | Self::MetadataTooLarge(_)
            | Self::NetworkMount(_)
            | Self::OtherFileSystem { .. }
            | Self::Coding(CodingError::Unsupported(_))
            | Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::Http(error) => error.status,
            Self::Coding(CodingError::NotAcceptable(_)) => StatusCode::NOT_ACCEPTABLE,
            Self::BodyIdle(_) => StatusCode::REQUEST_TIMEOUT,
            Self::DirectoryExists(_) => StatusCode::CONFLICT,
            Self::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Self::Exhausted(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Io { .. } | Self::EventsLost(_) | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) | Self::NoWatcher(_) => ErrorCode::NotFound,
            Self::DirectoryExists(_) => ErrorCode::AlreadyExists,
            Self::TooManyLinks(_) | Self::OtherFileSystem { .. } => ErrorCode::FailedPrecondition,
            Self::IsADirectory(_)
            | Self::NotADirectory(_)
            | Self::NotRegular(_)
            | Self::Invalid(_)
            | Self::NoMetadata(_)
            | Self::MetadataTooLarge(_)
            | Self::Coding(_)
            | Self::Body(_)
            | Self::NetworkMount(_) => ErrorCode::InvalidArgument,
            Self::NoSpace | Self::Exhausted(_) => ErrorCode::ResourceExhausted,
            Self::BodyIdle(_) => ErrorCode::DeadlineExceeded,
            Self::EventsLost(_) => ErrorCode::DataLoss,
            Self::Io { .. } | Self::Internal(_) | Self::Http(_) => ErrorCode::Internal,
        }
    }
}

impl From<PathError> for FileError {
    fn from(error: PathError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<QueryRejection> for FileError {
    fn from(error: QueryRejection) -> Self {
        Self::Invalid(error.body_text())
    }
}

impl From<FileError> for ConnectError {
    fn from(error: FileError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl IntoResponse for FileError {
    fn into_response(self) -> Response {
        let status = self.status();
        tracing::debug!(%status, error = %self, "file request refused");
        HttpError::new(status, self.to_string()).into_response()
    }
}

/// Runs a blocking file operation on the threads kept for such work.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(FileError::Internal(format!("a file operation did not finish: {error}"))))
}

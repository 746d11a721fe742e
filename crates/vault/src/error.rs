//! What can go wrong, one enum per operation.

use std::io;
use std::path::PathBuf;

use torpor_types::SnapshotId;

use crate::ManifestError;

/// Not enough space in the vault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the vault lacks {missing_bytes} bytes: {wanted_bytes} are wanted, {available_bytes} are there {limit}"
)]
pub struct NoRoom {
    /// How many bytes were asked for.
    pub wanted_bytes: u64,
    /// Bytes that may be written, less what others were promised.
    pub available_bytes: u64,
    /// How many bytes are lacking.
    pub missing_bytes: u64,
    /// What keeps more from being written.
    pub limit: Limit,
}

/// What keeps more from being written to the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// So many bytes of the file system are kept free.
    Reserve(u64),
    /// The vault may take up so many bytes.
    Budget(u64),
    /// The file system does not say how much is free.
    Unknown,
}

// === impl Limit ===

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Limit::Reserve(bytes) => write!(f, "beyond the {bytes} that are kept free"),
            Limit::Budget(bytes) => write!(f, "within its budget of {bytes}"),
            Limit::Unknown => f.write_str("(its file system does not say how many)"),
        }
    }
}

/// [`crate::Vault::open`] failed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system cannot clone files.
    #[error(
        "the file system of {path} ({file_system}) cannot clone files: Torpor needs XFS made with reflink=1, or btrfs. \
         Let `torpor` make an XFS image there, or choose another data directory"
    )]
    CannotClone {
        /// The vault's directory.
        path: PathBuf,
        /// Name of its file system.
        file_system: String,
    },
    /// Written by a newer Torpor, or not by Torpor.
    #[error(
        "{path} says '{found}', this Torpor understands {known}: upgrade Torpor, or choose another data directory"
    )]
    Version {
        /// The VERSION file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What is understood.
        known: String,
    },
    /// A file or directory cannot be used.
    #[error("{what} {path} failed: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
}

/// Filling a [`crate::Staging`] failed; drop it and nothing is left.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The id is taken.
    #[error("snapshot {0} exists already: every snapshot needs an id of its own")]
    Exists(SnapshotId),
    /// Not enough space.
    #[error("the vault is full ({what} {path}): remove snapshots, or grow the vault")]
    Full {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
    },
    /// A file or directory cannot be used.
    #[error("{what} {path} failed: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
}

/// [`crate::Staging::publish`] failed; there is no snapshot, and nothing is left.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A part that every snapshot needs was never staged.
    #[error("snapshot {id} is incomplete: {missing} was not staged")]
    Incomplete {
        /// The snapshot.
        id: SnapshotId,
        /// The part.
        missing: &'static str,
    },
    /// Writing failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// A snapshot or a part of it cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("there is no snapshot {0}")]
    NotFound(SnapshotId),
    /// A filesystem-only snapshot has neither memory nor state.
    #[error("snapshot {id} has no {part}: it is filesystem-only and can be booted, not resumed")]
    NoSuchPart {
        /// The snapshot.
        id: SnapshotId,
        /// The part.
        part: &'static str,
    },
    /// The manifest cannot be understood.
    #[error("snapshot {id}: {cause}")]
    Manifest {
        /// The snapshot.
        id: SnapshotId,
        /// Why.
        #[source]
        cause: ManifestError,
    },
    /// A part is not what the manifest says.
    #[error("snapshot {id} is damaged: {what}")]
    Damaged {
        /// The snapshot.
        id: SnapshotId,
        /// What does not fit.
        what: String,
    },
    /// A file cannot be read.
    #[error("reading {path} failed: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// [`crate::Vault::list`] failed: the directory of snapshots cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("listing the snapshots in {path} failed: {cause}")]
pub struct ListError {
    /// The directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub cause: io::Error,
}

/// [`crate::Vault::remove`] failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error("there is no snapshot {0}")]
    NotFound(SnapshotId),
    /// The file system refused.
    #[error("removing {path} failed: {cause}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

//! The store itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use torpor_types::SnapshotId;

use crate::{
    ListError, NoRoom, OpenError, ReadError, RemoveError, Room, Snapshot, StageError, Staging, Verified,
    VerifyError,
};

/// How much of a vault is kept free unless configured otherwise, in bytes.
pub const DEFAULT_RESERVE_BYTES: u64 = 1 << 30;

/// The store of snapshots. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vault(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    reserve_bytes: u64,
}

/// All snapshots of a vault.
#[derive(Debug)]
pub struct Listing {
    /// Those that can be used.
    pub snapshots: Vec<Snapshot>,
    /// Those that cannot, and why: shown to the operator, never removed on their own.
    pub unreadable: Vec<(SnapshotId, ReadError)>,
}

// === impl Vault ===

impl Vault {
    /// Opens the vault in the directory `dir`, and makes one there if it is empty. Proves that the file system can clone files.
    /// Removes what interrupted publications and removals left.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), reserve_bytes: DEFAULT_RESERVE_BYTES })))
    }

    /// Starts writing a snapshot.
    pub fn stage(&self, id: SnapshotId) -> Result<Staging, StageError> {
        Err(StageError::Exists(id))
    }

    /// The snapshot `id`.
    pub fn get(&self, id: &SnapshotId) -> Result<Snapshot, ReadError> {
        Err(ReadError::NotFound(id.clone()))
    }

    /// All snapshots, oldest first.
    pub fn list(&self) -> Result<Listing, ListError> {
        Ok(Listing { snapshots: Vec::new(), unreadable: Vec::new() })
    }

    /// Removes the snapshot `id`. Files of it that are open stay usable until they are closed.
    pub fn remove(&self, id: &SnapshotId) -> Result<(), RemoveError> {
        Err(RemoveError::NotFound(id.clone()))
    }

    /// Recomputes every hash of the snapshot `id`.
    pub fn verify(&self, id: &SnapshotId) -> Result<Verified, VerifyError> {
        Err(VerifyError::Read(ReadError::NotFound(id.clone())))
    }

    /// How much space there is.
    pub fn room(&self) -> std::io::Result<Room> {
        Ok(Room { total_bytes: 0, free_bytes: 0, reserve_bytes: self.0.reserve_bytes })
    }

    /// Fails unless `bytes` can be written without touching the reserve.
    pub fn require_room(&self, bytes: u64) -> Result<(), NoRoom> {
        let _ = bytes;
        Ok(())
    }

    /// Where working disks of machines are kept: on the vault's file system, so that they can be cloned to and from snapshots.
    pub fn machines_dir(&self) -> PathBuf {
        self.0.dir.join("machines")
    }

    /// The vault's directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }
}

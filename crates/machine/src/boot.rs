//! Booting a machine from a kernel, as templates are built.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::BootError;

/// What a machine boots from.
#[derive(Debug)]
pub struct BootSource {
    /// Kernel image (`vmlinuz`).
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initramfs: PathBuf,
    /// Kernel parameters beside those the machine itself needs (console, clock).
    pub cmdline: String,
    /// The disk, on the same file system as the working disks, not larger than the machine's; the machine works on a
    /// clone of it.
    pub disk: File,
}

/// The content of a file in memory, which a process of any user can open by its descriptor.
pub(crate) fn into_memory(path: &Path) -> Result<File, BootError> {
    let read = || -> io::Result<File> {
        let bytes = std::fs::read(path)?;
        let mut file = File::from(memfd_create("boot", MemfdFlags::CLOEXEC)?);
        file.write_all(&bytes)?;
        Ok(file)
    };
    read().map_err(|source| BootError::Read { path: path.to_owned(), source })
}

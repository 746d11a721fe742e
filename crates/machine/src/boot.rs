//! Booting a machine from a kernel, as templates are built.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};
use torpor_types::Accelerator;

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

/// What a guest's kernel is told, beside what the machine itself needs.
///
/// Watchdogs count time that passed while the machine did not run. Huge pages would dirty 2 MiB for a process that needs 4 KiB,
/// and everything dirtied is saved. Under emulation there is no speculation to guard against, and the guards cost a lot.
pub fn guest_command_line(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "nowatchdog transparent_hugepage=madvise",
        Accelerator::Tcg => "nowatchdog transparent_hugepage=madvise mitigations=off",
    }
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

//! What can go wrong, one enum per operation.

use std::io;
use std::path::PathBuf;

use crate::vmm::VmmError;

/// [`crate::Machines::start`] failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No QEMU.
    #[error(
        "QEMU cannot be run as '{qemu}' ({why}): install the package qemu-system-x86 (on Debian 12 from backports)"
    )]
    NoQemu {
        /// What was tried.
        qemu: PathBuf,
        /// Why it did not work.
        why: String,
    },
    /// Too old a QEMU.
    #[error("{found} is too old: QEMU 8.2 or later is needed (Debian 12: from backports)")]
    OldQemu {
        /// Its version.
        found: String,
    },
    /// The preloaded library is missing.
    #[error(
        "the library {path} cannot be used: {source}. Where nothing can be preloaded, the setting vault_memory = \"shared\" does \
         without"
    )]
    NoLibrary {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory cannot be made.
    #[error("the directory {path} cannot be made: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A berth, or the process in it, could not be made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// No network.
    #[error("the machine got no network: {0}")]
    Network(#[from] torpor_network::CreateError),
    /// A file or directory.
    #[error("{what} could not be made for the machine: {source}")]
    File {
        /// Which.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The control group.
    #[error("the control group {path} could not be set up: {source}")]
    Cgroup {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The process.
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

/// A snapshot could not be loaded. The machine is destroyed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The disk.
    #[error(
        "the snapshot's disk could not be cloned: {0}. Working disks and snapshots have to be on one file system that \
         can clone files"
    )]
    Disk(#[source] io::Error),
    /// The memory.
    #[error(
        "the snapshot's memory could not be looked at, or not be cloned into the machine's RAM file: {0}. Working disks and \
         snapshots have to be on one file system that can clone files"
    )]
    Memory(#[source] io::Error),
    /// The record.
    #[error("the machine's record could not be written: {0}")]
    Record(#[source] io::Error),
    /// The machine.
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

/// A machine could not be booted. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It could not be made.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Kernel or initial RAM file system.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Disk or record.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A machine could not be stopped or its state not be read. It may be running or stopped: `cont` lets it go on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The machine.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The copy of the state.
    #[error("the captured state could not be kept in the run directory: {0}")]
    Keep(#[source] io::Error),
}

/// A machine could not go on.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ContError(#[from] pub(crate) VmmError);

/// Dirtied memory could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It runs.
    #[error("the machine is running, and memory can only be saved while it is stopped")]
    Running,
    /// Told to stop.
    #[error("saving was cancelled")]
    Cancelled,
    /// The process.
    #[error("the machine's memory cannot be read (has its process ended?): {0}")]
    Read(#[source] io::Error),
    /// The RAM file.
    #[error("the machine's RAM file cannot be flushed (is the vault's disk full or failing?): {0}")]
    Flush(#[source] io::Error),
    /// The RAM file, earlier.
    #[error(
        "a part of the machine's RAM file could not be written to the vault's disk earlier, so that what it holds may not be what \
         the guest wrote; a resume goes on with what is in memory. Look at the kernel's log and at the disk"
    )]
    Damaged,
    /// The file.
    #[error("the memory file cannot be written: {0}")]
    Write(#[source] io::Error),
}

/// The machines of an earlier server could not be looked through.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The run directory.
    #[error("{path} cannot be listed: {source}")]
    List {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A machine that must not be touched.
    #[error(
        "the machine {machine} was started by a newer Torpor (its record has version {found}, this Torpor knows up to \
         {known}). It was left alone: start the newer Torpor, or, to go back to this one, pause with that what runs"
    )]
    TooNew {
        /// Which machine.
        machine: torpor_types::MachineId,
        /// Version of its record.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
}

/// Why one machine was not adopted; it is logged, and the machine destroyed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdopted {
    #[error("its record cannot be read: {0}")]
    Record(#[source] io::Error),
    #[error("its process is gone")]
    Gone,
    #[error("it carried no sandbox")]
    Idle,
    #[error("its disk cannot be opened: {0}")]
    Disk(#[source] io::Error),
    #[error("its RAM file cannot be opened: {0}")]
    Memory(#[source] io::Error),
    #[error(transparent)]
    Network(#[from] torpor_network::AdoptError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

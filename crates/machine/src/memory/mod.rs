//! Guest RAM: where a machine has it, how it gets a snapshot's, and how it is saved. The one place that knows the two
//! modes apart.
//!
//! ```text
//!            private                                    shared
//!  QEMU      an empty memfd, made a private mapping     the file <disks dir>/<machine-id>/ram, mapped shared;
//!            by the preloaded library                   nothing is preloaded
//!  load      the library maps the snapshot's file       the snapshot's file is cloned into the RAM file, under
//!            over it                                    QEMU's mapping
//!  save      dirtied pages are copied into a clone of   the RAM file is flushed and cloned; nothing is copied
//!            the base
//!  ahead     dirtied pages, copied while the guest runs  the RAM file, flushed while the guest runs
//! ```
//!
//! A machine keeps its mode for its life: its record says which one, whatever mode a later server starts machines in.

mod mode;
mod private;
mod shared;

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use torpor_types::Shape;

pub use mode::{MemoryMode, ParseMemoryModeError};
use shared::RamFile;

use crate::error::{LoadError, SaveError};
use crate::save::{SaveTarget, SavedMemory};
use crate::vmm::{GuestRam, Vm};

/// Name of a shared machine's RAM file, beside its disk.
pub(crate) const RAM_FILE: &str = "ram";

/// The RAM of one machine.
#[derive(Debug)]
pub(crate) enum Memory {
    /// A private mapping in its process.
    Private,
    /// A file, mapped shared.
    Shared(RamFile),
}

/// What a machine's record says of its RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum RamRecord {
    /// Where the private mapping lies in the process.
    Private(GuestRam),
    /// The name of its file, beside its disk. A server that does not know it cannot read the record, and so never takes
    /// such a machine for one whose memory is private.
    Shared { file: String },
}

// === impl Memory ===

impl Memory {
    /// The RAM of a new machine: at `path`, for the user `uid` to open, if it is to be a file.
    pub(crate) fn make(mode: MemoryMode, path: &Path, shape: Shape, uid: u32) -> io::Result<Self> {
        match mode {
            MemoryMode::Private => Ok(Self::Private),
            MemoryMode::Shared => RamFile::create(path, shape.memory_bytes(), uid).map(Self::Shared),
        }
    }

    /// The RAM of a machine that an earlier server made, with its file in `dir` if it has one.
    pub(crate) fn adopt(record: &RamRecord, dir: &Path, shape: Shape) -> io::Result<Self> {
        match record {
            RamRecord::Private(_) => Ok(Self::Private),
            RamRecord::Shared { file } if file == RAM_FILE => {
                RamFile::open(&dir.join(RAM_FILE), shape.memory_bytes()).map(Self::Shared)
            }
            RamRecord::Shared { file } => {
                Err(io::Error::other(format!("its RAM is in '{file}', which this server does not know")))
            }
        }
    }

    /// What to record of it, if QEMU says that it is at `mapped`; `None` if it says nothing and should.
    pub(crate) fn record(&self, mapped: Option<GuestRam>) -> Option<RamRecord> {
        match self {
            Self::Private => mapped.map(RamRecord::Private),
            Self::Shared(_) => Some(RamRecord::Shared { file: RAM_FILE.to_owned() }),
        }
    }

    /// The file that QEMU is to map as RAM; `None`: QEMU maps a placeholder, privately.
    pub(crate) fn file(&self) -> Option<&File> {
        match self {
            Self::Private => None,
            Self::Shared(ram) => Some(ram.file()),
        }
    }

    /// Gives an idle machine the memory of a snapshot.
    pub(crate) async fn load(&self, vm: &dyn Vm, snapshot: &File) -> Result<(), LoadError> {
        match self {
            Self::Private => Ok(vm.map_memory(snapshot).await?),
            Self::Shared(ram) => ram.load(snapshot).await.map_err(LoadError::Memory),
        }
    }

    /// Whether [`Memory::save`] adds to what the machine was loaded from, rather than writing a whole.
    pub(crate) fn saves_onto_base(&self) -> bool {
        matches!(self, Self::Private)
    }

    /// Does what can be done of a save into `into` while the guest runs; whether that was anything. Blocks.
    pub(crate) fn save_ahead(&self, vm: &dyn Vm, pid: u32, into: SaveTarget<'_>) -> Result<bool, SaveError> {
        match self {
            Self::Private => private::save_ahead(vm, pid, into),
            Self::Shared(ram) => ram.flush_ahead().map_err(SaveError::Flush).map(|()| true),
        }
    }

    /// Ends what [`Memory::save_ahead`] began.
    pub(crate) async fn untrack(&self, vm: &dyn Vm) {
        match self {
            Self::Private => private::untrack(vm).await,
            Self::Shared(_) => {}
        }
    }

    /// Saves the memory of the stopped machine into `into`, after what was done `ahead`. Blocks. The machine stands still as
    /// long as what `hold` gives is held.
    pub(crate) fn save<H>(
        &self,
        vm: &dyn Vm,
        pid: u32,
        into: SaveTarget<'_>,
        ahead: bool,
        hold: &(impl Fn() -> Result<H, SaveError> + Sync),
    ) -> Result<SavedMemory, SaveError> {
        match self {
            Self::Private => private::save(vm, pid, into, ahead, hold),
            Self::Shared(ram) => ram.save(into.file, ahead, hold),
        }
    }

    /// Bytes of the vault that saving it takes up, at most.
    pub(crate) fn room_to_save(&self, pid: u32) -> u64 {
        match self {
            Self::Private => private::own_bytes(pid),
            Self::Shared(_) => shared::ROOM_TO_SAVE,
        }
    }

    /// Whether what the guest writes to it takes up room in the vault at once.
    pub(crate) fn fills_vault(&self) -> bool {
        matches!(self, Self::Shared(_))
    }
}

// === impl RamRecord ===

impl RamRecord {
    /// Where private RAM lies in the process.
    pub(crate) fn mapped(&self) -> Option<GuestRam> {
        match self {
            Self::Private(ram) => Some(*ram),
            Self::Shared { .. } => None,
        }
    }
}

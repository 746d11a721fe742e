//! The store of snapshots on a node: clone, publish, verify, remove.
//!
//! A *snapshot* is an immutable directory with the memory, the disk and the device state of a machine, all
//! cut in one stop, and a [`Manifest`] that says what they are. Memory and disk are whole sparse files, never chains of differences;
//! they share their unchanged blocks with the snapshot they grew out of, because the vault's file system can *clone*
//! files (`FICLONE`; XFS with `reflink=1`, or btrfs). The vault never copies bytes to stand in for a clone: where cloning does not work,
//! [`Vault::open`] refuses, and [`place`] makes a file system where it does.
//!
//! ```text
//! <vault>/
//!   VERSION                  which layout this is, see `version.rs`
//!   snapshots/<id>/          published: complete, durable, never changed again
//!     manifest.json          written last; see `manifest.rs`
//!     memory  disk           sparse, sharing blocks with other snapshots; read-only
//!     memory.sums disk.sums  one BLAKE3 hash per MiB; see `sums.rs`
//!     state                  the device state of the virtual machine monitor
//!   staging/<id>/            being written or being removed; emptied by `Vault::open`
//!   machines/<id>/           working disks; owned by the machine crate
//! ```
//!
//! A snapshot is written in `staging/` ([`Staging`]), flushed, and *published* by a rename into `snapshots/`: it is there whole or
//! not at all. Removal goes the same way back.
//!
//! Everything here blocks (it reads, hashes and flushes files): call it from a blocking thread. One process at a time
//! may have a vault open; that is ensured by the lock on the server's data directory, not here.

mod error;
mod files;
pub mod interruption;
mod manifest;
mod mounts;
pub mod place;
mod publish;
mod room;
mod snapshot;
mod staging;
mod sums;
#[cfg(test)]
mod tests;
mod vault;
mod verify;
mod version;

pub use error::{Limit, ListError, NoRoom, OpenError, PublishError, ReadError, RemoveError, StageError};
pub use manifest::{
    DiskPart, Format, Kind, MachineFacts, Manifest, ManifestDraft, ManifestError, MemoryPart, StatePart,
};
pub use room::{Claim, Limits, Room};
pub use snapshot::Snapshot;
pub use staging::Staging;
pub use sums::{CHUNK_BYTES, Written};
pub use vault::{DEFAULT_RESERVE_BYTES, Listing, Vault};
pub use verify::{Verified, VerifyError};

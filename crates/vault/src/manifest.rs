//! What a snapshot is: `manifest.json`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use torpor_types::{Accelerator, Shape, SnapshotId};

/// Version of a manifest's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// Raised when an old reader would misunderstand a new manifest.
    pub major: u32,
    /// Raised when fields are added that an old reader may ignore.
    pub minor: u32,
}

/// What a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A build of a template.
    Template,
    /// Where a sandbox was paused, or a snapshot taken of it while it ran.
    Pause,
}

/// What the machine was: has to match for memory to be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// Its size.
    pub shape: Shape,
    /// What ran it.
    pub accelerator: Accelerator,
    /// QEMU's machine type.
    pub machine_type: String,
    /// QEMU's CPU model.
    pub cpu_model: String,
    /// QEMU's version.
    pub qemu_version: String,
    /// BLAKE3 of the guest's kernel image.
    pub kernel_blake3: String,
    /// Version of the agent in the guest.
    pub agent_version: String,
    /// Frequency of the time stamp counter the guest saw, in kHz; 0 where it does not matter.
    pub tsc_khz: u64,
}

/// What the owner of a [`crate::Staging`] says about the snapshot; the vault adds sizes and hashes.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifestDraft {
    /// What the snapshot is for.
    pub kind: Kind,
    /// When the machine was stopped.
    pub created_at: Timestamp,
    /// What the machine was.
    pub machine: MachineFacts,
    /// The owner's record (of a sandbox or a template), so that the database can be rebuilt from manifests.
    pub subject: serde_json::Value,
}

/// The memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of `memory.sums`.
    pub sums_blake3: String,
}

/// The disk file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPart {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of `disk.sums`.
    pub sums_blake3: String,
}

/// The device state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePart {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of `state`.
    pub blake3: String,
}

/// What a snapshot is. Memory and state are both there or both missing (a *filesystem-only* snapshot, which boots).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub format: Format,
    /// The snapshot's own id.
    pub id: SnapshotId,
    /// What it is for.
    pub kind: Kind,
    /// When the machine was stopped.
    pub created_at: Timestamp,
    /// The snapshot that the machine was resumed from; it may be gone by now.
    pub parent: Option<SnapshotId>,
    /// What the machine was.
    pub machine: MachineFacts,
    /// The memory file.
    pub memory: Option<MemoryPart>,
    /// The disk file.
    pub disk: DiskPart,
    /// The device state.
    pub state: Option<StatePart>,
    /// The owner's record.
    pub subject: serde_json::Value,
}

/// A manifest cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Written by a newer Torpor.
    #[error(
        "the manifest has format {found_major}.{found_minor}, this Torpor understands {known_major}.x: \
         upgrade Torpor to use this snapshot"
    )]
    UnknownFormat {
        /// Major version found.
        found_major: u32,
        /// Minor version found.
        found_minor: u32,
        /// Major version understood.
        known_major: u32,
    },
    /// Not a manifest.
    #[error("the manifest is damaged: {0}")]
    Damaged(String),
}

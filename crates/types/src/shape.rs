//! How large a machine is, and what runs it.

use serde::{Deserialize, Serialize};

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Bytes in a page of guest memory; pages are the unit in which changed memory is found and saved.
pub const GUEST_PAGE_BYTES: u64 = 4096;

/// The size of a machine. Machines of one shape can stand in for each other in the warm pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Virtual CPUs, 1 or more.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Root disk in MiB (its apparent size; the file is sparse).
    pub disk_mib: u32,
}

impl Shape {
    /// Guest memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) * MIB
    }

    /// Root disk in bytes.
    pub fn disk_bytes(&self) -> u64 {
        u64::from(self.disk_mib) * MIB
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} vCPU, {} MiB memory, {} MiB disk", self.vcpus, self.memory_mib, self.disk_mib)
    }
}

/// What executes guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation through `/dev/kvm`.
    Kvm,
    /// QEMU's software emulation (Tiny Code Generator): any Linux machine, at about a tenth of native speed.
    Tcg,
}

impl Accelerator {
    /// The name QEMU and the configuration use: `kvm` or `tcg`.
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// vCPUs a template gets unless it says otherwise: two on hardware; one under emulation, where a second
    /// virtual CPU slows single-threaded work by up to 57 %.
    pub fn default_vcpus(self) -> u32 {
        match self {
            Accelerator::Kvm => 2,
            Accelerator::Tcg => 1,
        }
    }
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

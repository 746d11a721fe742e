//! What [`crate::Machines::start`] has to be told.

use std::path::PathBuf;

use torpor_network::Network;
use torpor_types::Accelerator;

use crate::memory::MemoryMode;

/// How machines are made.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// The QEMU program, a path or a name found in `PATH`. `None`: `qemu-system-x86_64-microvm` on KVM where it is
    /// installed (it starts faster and has no emulator), else `qemu-system-x86_64`.
    pub qemu: Option<PathBuf>,
    /// How machines that are started from now on have their RAM.
    pub memory: MemoryMode,
    /// The library that is preloaded into QEMU, unless memory is shared. Has to be readable by everybody and lie on no `noexec` mount.
    pub ram_map: PathBuf,
    /// What executes guest instructions.
    pub accelerator: Accelerator,
    /// Directory for run-time files (tmpfs); `machines/<id>` is made in it.
    pub run_dir: PathBuf,
    /// Directory for working disks, on the vault's file system.
    pub disks_dir: PathBuf,
    /// Where machines get their networks.
    pub network: Network,
    /// Which server of this host it is: names the control group, so that two servers do not remove each other's.
    pub instance: String,
    /// First of the user ids that QEMU processes run under, one each. Every instance has a range of 10,000 of its own
    /// among the 200,000,000 from here on.
    pub uid_base: u32,
    /// Most idle machines kept ready, over all shapes together; an idle one costs about 20 MB.
    pub warm_limit: usize,
}

// === impl MachineOptions ===

impl MachineOptions {
    /// First of the user ids unless configured otherwise: above every id in ordinary use.
    pub const DEFAULT_UID_BASE: u32 = 1_900_000_000;
    /// Most idle machines unless configured otherwise.
    pub const DEFAULT_WARM_LIMIT: usize = 16;
}

//! RAM as a private mapping: what is the machine's own are the anonymous pages of its process.

use std::io;

use crate::error::SaveError;
use crate::save::{self, SaveTarget, SavedMemory};
use crate::vmm::{GuestRam, Vm};

/// Copies what the guest dirtied while it runs. False if the kernel cannot tell which pages that are.
pub(super) fn save_ahead(vm: &dyn Vm, pid: u32, into: SaveTarget<'_>) -> Result<bool, SaveError> {
    let tracked = tokio::runtime::Handle::current().block_on(vm.track_memory());
    let tracked = tracked.map_err(|error| SaveError::Read(io::Error::other(error)))?;
    if tracked {
        let saved = save::copy_ahead(pid, mapped(vm)?, into)?;
        tracing::debug!(?saved, "memory copied ahead");
    }
    Ok(tracked)
}

pub(super) async fn untrack(vm: &dyn Vm) {
    if let Err(error) = vm.untrack_memory().await {
        tracing::warn!(%error, "a guest's writes stay tracked");
    }
}

pub(super) fn save<H>(
    vm: &dyn Vm,
    pid: u32,
    into: SaveTarget<'_>,
    ahead: bool,
    hold: &(impl Fn() -> Result<H, SaveError> + Sync),
) -> Result<SavedMemory, SaveError> {
    save::save(pid, mapped(vm)?, into, ahead, hold)
}

/// How much memory is the machine's alone, in bytes: never less than what [`save`] writes, for it counts QEMU's own
/// memory too. 0 if the process is gone.
pub(super) fn own_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0_u64)
    };
    (kib("RssAnon:") + kib("VmSwap:")) << 10
}

fn mapped(vm: &dyn Vm) -> Result<GuestRam, SaveError> {
    let unknown = || SaveError::Read(io::Error::other("it is not known where it lies in the process"));
    vm.guest_ram().ok_or_else(unknown)
}

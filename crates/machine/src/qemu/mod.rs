//! QEMU as the virtual machine monitor.

mod backing;
mod command;
mod process;
mod qmp;
mod ram;
mod version;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;

use torpor_types::Accelerator;

pub(crate) use version::{facts, find};

use crate::facts::HostFacts;
use crate::vmm::{GuestRam, Place, Start, Vm, Vmm, VmmError};
use backing::Backing;
use process::{QemuVm, io_error};

/// A QEMU program and how this host has to use it.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    pub(crate) program: PathBuf,
    pub(crate) ram_map: PathBuf,
    pub(crate) facts: HostFacts,
    /// Whether disks are read and written through io_uring; else by threads.
    pub(crate) io_uring: bool,
    /// Group that may open `/dev/kvm`.
    pub(crate) kvm_gid: Option<u32>,
}

/// Descriptors as the process sees them.
mod child_fd {
    pub(super) const RAM: i32 = 3;
    pub(super) const RAM_SOCKET: i32 = 4;
    pub(super) const QMP: i32 = 5;
    pub(super) const DISK: i32 = 6;
    pub(super) const TAP: i32 = 7;
    pub(super) const CONSOLE: i32 = 8;
    pub(super) const KERNEL: i32 = 9;
    pub(super) const INITRAMFS: i32 = 10;
    pub(super) const RAM_MAP: i32 = 11;
}

/// Name of the control socket in the machine's directory.
const QMP_SOCKET: &str = "qmp.sock";

// === impl Qemu ===

impl Qemu {
    fn accelerator(&self) -> Accelerator {
        self.facts.accelerator
    }
}

#[async_trait::async_trait]
impl Vmm for Qemu {
    #[tracing::instrument(name = "machine.start_process", skip_all)]
    async fn start(&self, place: Place<'_>, start: Start<'_>) -> Result<(Child, Box<dyn Vm>), VmmError> {
        let doing = "starting QEMU";
        let failed = |error: std::io::Error| io_error(doing, error);
        let socket = place.dir.join(QMP_SOCKET);
        let log = place.dir.join(crate::logs::QEMU_LOG);
        // Created here and passed: QEMU needs no right to any path, and connecting needs no waiting.
        let listener = std::os::unix::net::UnixListener::bind(&socket).map_err(failed)?;
        let mut command = command::command(self, place.shape, &start);
        let mut fds = Vec::new();
        let backing = Backing::prepare(self, &place, &mut command, &mut fds).map_err(failed)?;
        fds.extend([
            (listener.into(), child_fd::QMP),
            (copy(place.disk).map_err(failed)?, child_fd::DISK),
            (place.tap, child_fd::TAP),
            (copy(place.console).map_err(failed)?, child_fd::CONSOLE),
        ]);
        if let Start::Boot { kernel, initramfs, .. } = start {
            fds.push((copy(kernel).map_err(failed)?, child_fd::KERNEL));
            fds.push((copy(initramfs).map_err(failed)?, child_fd::INITRAMFS));
        }
        let gid = self.kvm_gid.unwrap_or(place.uid);
        process::confine(&mut command, place.uid, gid, place.log, fds).map_err(failed)?;
        torpor_sys::in_cgroups(&mut command, place.cgroup_procs);
        let netns = place.namespace.netns().try_clone_to_owned().map_err(failed)?;
        let mut child = process::spawn_in(netns, command).await.map_err(failed)?;
        let connected = async {
            let qmp = process::connect(&socket, &log).await?;
            let (guest_ram, ram) = backing.locate().await?;
            Ok(Box::new(QemuVm::new(qmp, guest_ram, ram)))
        };
        match connected.await {
            Ok(vm) => Ok((child, vm)),
            Err(error) => {
                let _ = child.kill();
                let _ = tokio::task::spawn_blocking(move || child.wait()).await;
                Err(error)
            }
        }
    }

    fn keeps_translations(&self) -> bool {
        self.accelerator() == Accelerator::Tcg && version::keeps_translations(&self.facts.qemu_version)
    }

    async fn adopt(&self, dir: &Path, ram: Option<GuestRam>) -> Result<Box<dyn Vm>, VmmError> {
        let qmp = process::connect(&dir.join(QMP_SOCKET), &dir.join(crate::logs::QEMU_LOG)).await?;
        Ok(Box::new(QemuVm::new(qmp, ram, None)))
    }
}

fn copy(file: &File) -> std::io::Result<OwnedFd> {
    file.as_fd().try_clone_to_owned()
}

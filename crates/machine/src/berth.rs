//! A berth: everything a machine's process needs before it starts and leaves behind when it ends.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use torpor_network::{Namespace, Network};
use torpor_types::{Accelerator, MachineId, Shape};

use crate::cgroup::{Cgroup, Cgroups};
use crate::error::ClaimError;
use crate::logs;
use crate::memory::{Memory, MemoryMode, RAM_FILE};
use crate::uids::{UidLease, Uids};

/// Where berths are made, and from what.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pub(crate) run_dir: PathBuf,
    pub(crate) disks_dir: PathBuf,
    pub(crate) accelerator: Accelerator,
    pub(crate) memory: MemoryMode,
    pub(crate) network: Network,
    pub(crate) cgroups: Cgroups,
    pub(crate) uids: Uids,
}

/// The berth of one machine.
#[derive(Debug)]
pub(crate) struct Berth {
    pub(crate) id: MachineId,
    pub(crate) shape: Shape,
    pub(crate) site: Site,
    pub(crate) disk: File,
    pub(crate) memory: Memory,
    pub(crate) namespace: Namespace,
    pub(crate) uid: UidLease,
}

/// What of a berth has to be removed by hand: all of it follows from the machine's id.
#[derive(Debug)]
pub(crate) struct Site {
    /// The run directory.
    pub(crate) dir: PathBuf,
    disk_dir: PathBuf,
    pub(crate) cgroup: Cgroup,
}

/// What is handed to the process alone.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) tap: OwnedFd,
    pub(crate) log: File,
    pub(crate) console: File,
}

/// Directory of the machines' run directories.
pub(crate) fn machines_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("machines")
}

// === impl Ground ===

impl Ground {
    /// Directory of the machines' run directories.
    pub(crate) fn machines_dir(&self) -> PathBuf {
        machines_dir(&self.run_dir)
    }

    /// The site of a machine, whether it exists or not.
    pub(crate) fn site(&self, id: &MachineId) -> Site {
        Site {
            dir: self.machines_dir().join(id.as_str()),
            disk_dir: self.disks_dir.join(id.as_str()),
            cgroup: self.cgroups.of(id.as_str()),
        }
    }

    /// Makes a berth. On an error nothing of it is left.
    #[tracing::instrument(name = "machine.berth", skip_all)]
    pub(crate) async fn make(&self, id: MachineId, shape: Shape) -> Result<(Berth, Handover), ClaimError> {
        let mut namespace = self.network.create().await?;
        let uid = self.uids.lease();
        let made = self.make_files(&id, shape).and_then(|(disk, log, console)| {
            let memory = Memory::make(self.memory, &self.site(&id).ram_path(), shape, uid.get())
                .map_err(|source| ClaimError::File { what: "the RAM file", source })?;
            let no_tap = || ClaimError::File { what: "the tap", source: io::ErrorKind::NotFound.into() };
            let tap = namespace.take_tap().ok_or_else(no_tap)?;
            Ok((disk, memory, Handover { tap, log, console }))
        });
        match made {
            Ok((disk, memory, handover)) => {
                let site = self.site(&id);
                Ok((Berth { id, shape, site, disk, memory, namespace, uid }, handover))
            }
            Err(error) => {
                self.site(&id).remove();
                Err(error)
            }
        }
    }

    fn make_files(&self, id: &MachineId, shape: Shape) -> Result<(File, File, File), ClaimError> {
        let site = self.site(id);
        for (what, dir) in [("the run directory", &site.dir), ("the disk directory", &site.disk_dir)] {
            let made = DirBuilder::new().mode(0o700).create(dir);
            made.map_err(|source| ClaimError::File { what, source })?;
        }
        self.cgroups.create(id.as_str(), shape, self.accelerator)?;
        let disk = || -> io::Result<File> {
            let path = site.disk_path();
            let disk = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
            disk.set_len(shape.disk_bytes())?;
            Ok(disk)
        };
        let disk = disk().map_err(|source| ClaimError::File { what: "the disk", source })?;
        let log = |name| {
            logs::create(&site.dir.join(name)).map_err(|source| ClaimError::File { what: "a log", source })
        };
        Ok((disk, log(logs::QEMU_LOG)?, log(logs::CONSOLE_LOG)?))
    }
}

// === impl Site ===

impl Site {
    /// The working disk.
    pub(crate) fn disk_path(&self) -> PathBuf {
        self.disk_dir.join("disk")
    }

    /// The file that is the machine's RAM, if it is shared.
    pub(crate) fn ram_path(&self) -> PathBuf {
        self.disk_dir.join(RAM_FILE)
    }

    /// Directory of the working disk.
    pub(crate) fn disk_dir(&self) -> &Path {
        &self.disk_dir
    }

    /// The file that holds the device state while the machine is captured.
    pub(crate) fn state_path(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Removes all of it, and ends what still runs in the control group. Blocks until that is gone.
    pub(crate) fn remove(&self) {
        self.cgroup.remove();
        for dir in [&self.disk_dir, &self.dir] {
            remove_dir(dir);
        }
    }
}

fn remove_dir(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "a machine's directory could not be removed");
        }
        _ => {}
    }
}

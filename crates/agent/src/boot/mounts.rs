//! The kernel's file systems, where Linux programs expect them.

use std::{ffi::CStr, path::Path};

use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
};

use super::{BootError, Doing, make_directory};

/// One mount of a kernel file system.
pub(super) struct Mount {
    pub(super) kind: &'static str,
    pub(super) target: &'static str,
    pub(super) flags: MountFlags,
    pub(super) options: &'static CStr,
}

const PRIVATE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const PLAIN: MountFlags = PRIVATE.union(MountFlags::NOEXEC);

/// What stage 1 needs; moved over to the disk afterwards.
pub(super) const EARLY: [Mount; 3] = [
    Mount { kind: "proc", target: "/proc", flags: PLAIN, options: c"" },
    Mount { kind: "sysfs", target: "/sys", flags: PLAIN, options: c"" },
    Mount { kind: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: c"mode=0755" },
];

/// The rest, mounted by stage 2. `/tmp` stays a directory of the disk.
pub(super) const LATE: [Mount; 4] = [
    // Group 5 is `tty` in Debian and everywhere else.
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"gid=5,mode=0620,ptmxmode=0666",
    },
    Mount { kind: "tmpfs", target: "/dev/shm", flags: PRIVATE, options: c"mode=1777" },
    Mount { kind: "mqueue", target: "/dev/mqueue", flags: PLAIN, options: c"" },
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: PLAIN, options: c"nsdelegate" },
];

// === impl Mount ===

impl Mount {
    /// Makes the directory if need be and mounts. Something mounted there already is fine.
    pub(super) fn mount(&self) -> Result<(), BootError> {
        if !Path::new(self.target).exists() {
            make_directory(Path::new(self.target))?;
        }
        match mount(self.kind, self.target, self.kind, self.flags, self.options) {
            Err(Errno::BUSY) => Ok(()),
            other => other.doing(format_args!("mounting {}", self.target)),
        }
    }
}

/// The tmpfs `/run`, as seen from the directory that is about to become the root. Programs may run from it: the
/// agent does.
pub(super) fn mount_run(target: &Path) -> Result<(), BootError> {
    make_directory(target)?;
    mount("tmpfs", target, "tmpfs", PRIVATE, c"mode=0755,size=25%").doing("mounting /run")
}

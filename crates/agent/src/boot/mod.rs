//! From the kernel's first process to a serving agent, without a shell and without starting any other program:
//! under software emulation each would cost as much as all of this.
//!
//! ```text
//! stage 1   / is the initramfs     /proc /sys /dev, modules, /dev/vda on /root, itself to /run/torpor/agent
//!             │ switch root, exec
//! stage 2   / is the disk          /dev/pts /dev/shm cgroup2, lo and eth0, limits, then the runtime and the server
//! ```
//!
//! The template's files are left alone, except for `/etc/resolv.conf`, the machine's own name in `/etc/hosts` and an
//! `/etc/machine-id` that is missing.

use std::{fmt::Display, io, path::Path};

mod mounts;
mod network;
mod power;
pub mod stage1;
pub mod stage2;

/// Where the agent lives once the root file system is mounted: on a tmpfs, so that no template can lack or break it.
const AGENT: &str = "/run/torpor/agent";

/// The argument that tells a PID 1 that it is in its second stage.
pub const STAGE2: &str = "stage2";

/// What kept the machine from booting. There is nobody to handle it; it is shown on the console.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct BootError {
    doing: String,
    source: io::Error,
}

/// Says what was being done when an error occurred.
trait Doing<T> {
    /// `what` reads like "mounting /proc".
    fn doing(self, what: impl Display) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T, BootError> {
        self.map_err(|source| BootError { doing: what.to_string(), source: source.into() })
    }
}

/// Makes a directory unless it is there.
fn make_directory(path: &Path) -> Result<(), BootError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.doing(format_args!("making the directory {}", path.display())),
    }
}

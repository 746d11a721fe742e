//! What a machine boots from when its snapshot has no memory.
//!
//! Kernels are named by their BLAKE3 hash, as snapshots' manifests name them. Of each the node has a directory:
//!
//! ```text
//! <boot dir>/<blake3 of the kernel>/
//!   vmlinuz      the kernel
//!   initramfs    the agent of this server, and the modules the kernel needs to mount the disk
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use torpor_machine::BootSource;
use torpor_types::Accelerator;

/// The kernels of a node.
#[derive(Debug, Clone)]
pub(super) struct Kernels {
    dir: PathBuf,
}

/// The kernel of a snapshot is not on this host.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel {kernel} that it was saved with is not in {dir}. Nothing is lost: copy the directory of that name from \
     the host it was made on, or run `torpor setup` of the version that made its template, and start it again"
)]
pub(super) struct NoKernel {
    kernel: String,
    dir: PathBuf,
}

// === impl Kernels ===

impl Kernels {
    /// Those below `dir`.
    pub(super) fn new(dir: &Path) -> Kernels {
        Kernels { dir: dir.to_owned() }
    }

    /// What boots `disk` with the kernel of that hash.
    pub(super) fn source(
        &self,
        kernel_blake3: &str,
        accelerator: Accelerator,
        disk: File,
    ) -> Result<BootSource, NoKernel> {
        let dir = self.dir.join(kernel_blake3);
        let (kernel, initramfs) = (dir.join("vmlinuz"), dir.join("initramfs"));
        if kernel_blake3.is_empty() || !kernel.is_file() || !initramfs.is_file() {
            return Err(NoKernel { kernel: kernel_blake3.to_owned(), dir: self.dir.clone() });
        }
        let cmdline = torpor_machine::guest_command_line(accelerator).to_owned();
        Ok(BootSource { kernel, initramfs, cmdline, disk })
    }
}

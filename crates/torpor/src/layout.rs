//! Where things are: the data directory and what belongs to it.

use std::path::{Path, PathBuf};

/// Where a node keeps everything that outlives it, unless told otherwise.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/torpor";

/// Where processes of a node keep what ends with the host's next start.
const RUN_ROOT: &str = "/run/torpor";

/// A node's data directory, by its canonical path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataDir {
    root: PathBuf,
}

// === impl DataDir ===

impl DataDir {
    /// The data directory at `path`, made if it does not exist: its owner may do everything, others may pass
    /// through (machines run as users of their own), but list nothing.
    pub(crate) fn create(path: &Path) -> std::io::Result<DataDir> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(path)?;
        let root = path.canonicalize()?;
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o711))?;
        Ok(DataDir { root })
    }

    /// The data directory at `path`, which must exist.
    pub(crate) fn existing(path: &Path) -> std::io::Result<DataDir> {
        Ok(DataDir { root: path.canonicalize()? })
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.root.join("torpor.toml")
    }

    /// The lock that keeps two servers apart; holds the process id of the one that has it.
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("torpor.lock")
    }

    /// Programs taken out of this binary.
    pub(crate) fn lib(&self) -> PathBuf {
        self.root.join("lib")
    }

    /// The vault: a plain directory or the mount point of the image.
    pub(crate) fn vault(&self) -> PathBuf {
        self.root.join("vault")
    }

    /// Kernels that sandboxes without memory boot with.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Certificates: the private authority's, and those that ACME got.
    pub(crate) fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    /// Logs of sandboxes.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Scratch space of template builds.
    pub(crate) fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    /// Eight hexadecimal digits that tell this node's processes, devices and rules from another's on the same host.
    pub(crate) fn instance(&self) -> String {
        use std::os::unix::ffi::OsStrExt;
        blake3::hash(self.root.as_os_str().as_bytes()).to_hex()[..8].to_owned()
    }

    /// Where this node's machines keep sockets, logs and records.
    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(self.instance())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_data_directories_are_two_instances() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (DataDir::create(a.path()).unwrap(), DataDir::create(b.path()).unwrap());
        assert_ne!(a.instance(), b.instance());
        assert_eq!(a.instance().len(), 8);
        assert_eq!(DataDir::existing(a.root()).unwrap(), a);
    }
}

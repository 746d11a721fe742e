//! Where the vault is: a directory that can clone files, or an image file that can.

use std::io;
use std::path::{Path, PathBuf};

/// How [`prepare`] makes a vault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlaceOptions {
    /// Apparent size of a new image in bytes; `None` chooses by the free space.
    pub image_bytes: Option<u64>,
}

/// Where a vault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The vault's directory, for [`crate::Vault::open`].
    pub vault_dir: PathBuf,
    /// The image it is in, if it is.
    pub image: Option<PathBuf>,
}

/// What a data directory offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Whether files can be cloned there.
    pub clones: bool,
    /// Name of the file system.
    pub file_system: String,
    /// Free bytes.
    pub free_bytes: u64,
    /// Apparent size of the image, if there is one.
    pub image_bytes: Option<u64>,
    /// Whether the image is mounted.
    pub mounted: bool,
}

/// A place for the vault cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Not root.
    #[error(
        "mounting the vault's image needs root: run the server as root, or put the data directory on XFS (reflink=1) or btrfs"
    )]
    NotRoot,
    /// A program is missing.
    #[error("the program `{program}` is missing: install the package {package}")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// The Debian package it is in.
        package: &'static str,
    },
    /// Not enough space.
    #[error(
        "{data_dir} has {free_bytes} bytes free, an image needs at least {needed_bytes}: free some, or choose another data directory"
    )]
    NoRoom {
        /// The data directory.
        data_dir: PathBuf,
        /// What is free.
        free_bytes: u64,
        /// What is needed.
        needed_bytes: u64,
    },
    /// The asked size cannot be had.
    #[error("an image of {bytes} bytes cannot be made: {reason}")]
    BadSize {
        /// The size.
        bytes: u64,
        /// Why.
        reason: String,
    },
    /// A program failed.
    #[error("`{command}` failed: {cause}")]
    Program {
        /// The command line.
        command: String,
        /// What it said.
        cause: String,
    },
    /// A file or directory cannot be used.
    #[error("{what} {path} failed: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
}

/// Looks at a data directory; changes nothing that lasts.
pub fn inspect(data_dir: &Path) -> Result<Inspection, PlaceError> {
    let _ = data_dir;
    Err(PlaceError::NotRoot)
}

/// Makes sure that there is a directory for the vault that can clone files, and says where. Idempotent; may be interrupted at any point and called again.
pub fn prepare(data_dir: &Path, options: &PlaceOptions) -> Result<Place, PlaceError> {
    let _ = (data_dir, options);
    Err(PlaceError::NotRoot)
}

/// Grows the image to `image_bytes` while it is in use.
pub fn grow(data_dir: &Path, image_bytes: u64) -> Result<(), PlaceError> {
    let _ = (data_dir, image_bytes);
    Err(PlaceError::NotRoot)
}

/// Unmounts the image, if there is one and it is mounted. Fails while files in it are open.
pub fn unmount(data_dir: &Path) -> Result<(), PlaceError> {
    let _ = data_dir;
    Err(PlaceError::NotRoot)
}

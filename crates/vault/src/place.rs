//! Where the vault is: in the data directory, if that can clone files, or else in an image file there that can.
//!
//! ```text
//! <data>/vault          the vault's directory: an ordinary one, or where the image is mounted
//! <data>/vault.img      the image, if there is one: a sparse XFS file system
//! <data>/vault.img.new  an image that is being made; a leftover is made anew
//! ```
//!
//! The image is mounted through a loop device that goes away with the mount. As the image is sparse, the file system
//! around it may fill up before the image does: [`crate::Room`] therefore counts what both have free.
//!
//! Blocks that are freed in the image are given back to the file system around it by [`trim`], not at once (mount option
//! `discard`): a snapshot whose changes are scattered consists of thousands of extents, and discarding each on its
//! own held up all writing to the vault for 20 to 30 seconds when such a snapshot of 50 MiB was removed.
//!
//! Everything here blocks, and starts the programs `mkfs.xfs`, `mount`, `losetup`, `fstrim` and `xfs_growfs`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use crate::files::{clones, make_dir, sync_dir};
use crate::mounts::{Mount, backing_file, mount_of};
use crate::room::Space;

/// The smallest image that `mkfs.xfs` makes, in bytes.
pub const MIN_IMAGE_BYTES: u64 = 300 << 20;

/// A new image has at least this apparent size, if the file system around it can ever hold it: it costs nothing until used.
const COMFORTABLE_IMAGE_BYTES: u64 = 20 << 30;

/// With less than this free, no image is made: not even a template would fit.
const MIN_FREE_BYTES: u64 = 1 << 30;

/// Free space in smaller pieces than this is not given back: it costs more than it gives.
const MIN_TRIM: &str = "1MiB";

const VAULT: &str = "vault";
const IMAGE: &str = "vault.img";
const NEW_IMAGE: &str = "vault.img.new";

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

/// Looks at a data directory, which has to exist; changes nothing.
pub fn inspect(data_dir: &Path) -> Result<Inspection, PlaceError> {
    let places = Places::of(data_dir)?;
    let data_dir = &places.data_dir;
    let mount = mount_of(data_dir).map_err(io_error("reading the mounts of", data_dir))?;
    let image_bytes = match std::fs::metadata(&places.image) {
        Ok(metadata) => Some(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(cause) => return Err(io_error("reading", &places.image)(cause)),
    };
    Ok(Inspection {
        clones: clones(data_dir).map_err(io_error("testing", data_dir))?,
        file_system: mount.map_or_else(|| "unknown".to_owned(), |mount| mount.file_system),
        free_bytes: Space::of(data_dir).map_err(io_error("measuring", data_dir))?.free_bytes,
        image_bytes,
        mounted: places.mounted()?.is_some(),
    })
}

/// Makes sure that there is a directory for the vault that can clone files, and says where. Idempotent; may be
/// interrupted at any point and called again.
///
/// An image that exists is used and mounted, whatever the options say.
pub fn prepare(data_dir: &Path, options: &PlaceOptions) -> Result<Place, PlaceError> {
    let places = Places::of(data_dir)?;
    let vault = &places.vault;
    // A vault that clones already: on this file system, or on one that someone mounted there.
    if !places.has_image()? {
        let there = if vault.exists() { vault } else { &places.data_dir };
        if clones(there).map_err(io_error("testing", there))? {
            make_dir(vault, 0o711).map_err(io_error("making", vault))?;
            return Ok(Place { vault_dir: places.vault, image: None });
        }
    }
    prepare_in_image(places, options)
}

/// Grows the image to `image_bytes` while it is in use. Asking for the size it has completes an interrupted growth.
pub fn grow(data_dir: &Path, image_bytes: u64) -> Result<(), PlaceError> {
    let places = Places::of(data_dir)?;
    let mount = places.mounted()?.ok_or_else(|| PlaceError::BadSize {
        bytes: image_bytes,
        reason: "the vault is not in a mounted image; it grows with its file system".to_owned(),
    })?;
    let image =
        File::options().write(true).open(&places.image).map_err(io_error("opening", &places.image))?;
    let present = image.metadata().map_err(io_error("measuring", &places.image))?.len();
    if image_bytes < present {
        let reason = format!("the image has {present} bytes, and XFS cannot shrink");
        return Err(PlaceError::BadSize { bytes: image_bytes, reason });
    }
    check_size(&places, image_bytes)?;
    image.set_len(image_bytes).map_err(io_error("growing", &places.image))?;
    image.sync_all().map_err(io_error("flushing", &places.image))?;
    run("losetup", "mount", &[Path::new("--set-capacity"), &mount.source])?;
    run("xfs_growfs", "xfsprogs", &[&places.vault])
}

fn prepare_in_image(places: Places, options: &PlaceOptions) -> Result<Place, PlaceError> {
    if places.mounted()?.is_none() {
        if !rustix::process::geteuid().is_root() {
            return Err(PlaceError::NotRoot);
        }
        if !places.has_image()? {
            make_image(&places, options)?;
        }
        mount(&places)?;
    }
    Ok(Place { vault_dir: places.vault, image: Some(places.image) })
}

/// As [`prepare`], in an image even where none is needed: tests fill it to the brim.
#[cfg(test)]
pub(crate) fn prepare_image(data_dir: &Path, options: &PlaceOptions) -> Result<Place, PlaceError> {
    prepare_in_image(Places::of(data_dir)?, options)
}

/// Gives blocks that are free in the image back to the file system around it. Takes seconds; meant for the background, every hour or so and after
/// snapshots were removed. Does nothing where there is no image.
pub fn trim(data_dir: &Path) -> Result<(), PlaceError> {
    let places = Places::of(data_dir)?;
    if places.mounted()?.is_none() {
        return Ok(());
    }
    run("fstrim", "util-linux", &[Path::new("--minimum"), Path::new(MIN_TRIM), &places.vault])
}

/// Unmounts the image, if there is one and it is mounted. Fails while files in it are open.
pub fn unmount(data_dir: &Path) -> Result<(), PlaceError> {
    let places = Places::of(data_dir)?;
    if places.mounted()?.is_some() {
        rustix::mount::unmount(&places.vault, UnmountFlags::NOFOLLOW)
            .map_err(|error| io_error("unmounting", &places.vault)(error.into()))?;
    }
    Ok(())
}

/// The paths of one data directory.
struct Places {
    data_dir: PathBuf,
    vault: PathBuf,
    image: PathBuf,
}

// === impl Places ===

impl Places {
    fn of(data_dir: &Path) -> Result<Self, PlaceError> {
        let data_dir = data_dir.canonicalize().map_err(io_error("opening", data_dir))?;
        Ok(Self { vault: data_dir.join(VAULT), image: data_dir.join(IMAGE), data_dir })
    }

    fn has_image(&self) -> Result<bool, PlaceError> {
        self.image.try_exists().map_err(io_error("looking for", &self.image))
    }

    /// The image's mount, if the image is what is mounted on the vault's directory.
    fn mounted(&self) -> Result<Option<Mount>, PlaceError> {
        let mount = mount_of(&self.vault).map_err(io_error("reading the mounts of", &self.vault))?;
        Ok(mount.filter(|mount| {
            mount.point == self.vault && backing_file(&mount.source).as_deref() == Some(&*self.image)
        }))
    }
}

/// Makes the image aside and renames it when it is whole.
fn make_image(places: &Places, options: &PlaceOptions) -> Result<(), PlaceError> {
    let free_bytes = Space::of(&places.data_dir).map_err(io_error("measuring", &places.data_dir))?.free_bytes;
    let bytes = match options.image_bytes {
        Some(bytes) => bytes,
        None => default_size(places)?,
    };
    check_size(places, bytes)?;
    let needed_bytes = MIN_FREE_BYTES.min(bytes);
    if free_bytes < needed_bytes {
        return Err(PlaceError::NoRoom { data_dir: places.data_dir.clone(), free_bytes, needed_bytes });
    }
    let aside = places.data_dir.join(NEW_IMAGE);
    tracing::info!(bytes, image = %places.image.display(), "making an XFS image: this file system cannot clone files");
    let file = File::create(&aside).map_err(io_error("making", &aside))?;
    file.set_len(bytes).map_err(io_error("making", &aside))?;
    let arguments = ["-q", "-f", "-K", "-m", "reflink=1"].map(Path::new);
    run("mkfs.xfs", "xfsprogs", &[&arguments[..], &[&aside]].concat())?;
    file.sync_all().map_err(io_error("flushing", &aside))?;
    std::fs::rename(&aside, &places.image).map_err(io_error("renaming", &aside))?;
    sync_dir(&places.data_dir).map_err(io_error("flushing", &places.data_dir))
}

/// Four fifths of what is free, and not less than is comfortable: see [`COMFORTABLE_IMAGE_BYTES`].
fn default_size(places: &Places) -> Result<u64, PlaceError> {
    let space = Space::of(&places.data_dir).map_err(io_error("measuring", &places.data_dir))?;
    let bytes = (space.free_bytes / 5 * 4).max(COMFORTABLE_IMAGE_BYTES).min(space.total_bytes);
    Ok(bytes / (1 << 20) * (1 << 20))
}

fn check_size(places: &Places, bytes: u64) -> Result<(), PlaceError> {
    let total_bytes =
        Space::of(&places.data_dir).map_err(io_error("measuring", &places.data_dir))?.total_bytes;
    let reason = if bytes < MIN_IMAGE_BYTES {
        format!("XFS needs at least {MIN_IMAGE_BYTES}")
    } else if bytes > total_bytes {
        format!("its file system has only {total_bytes}, so the image could never be filled")
    } else {
        return Ok(());
    };
    Err(PlaceError::BadSize { bytes, reason })
}

fn mount(places: &Places) -> Result<(), PlaceError> {
    make_dir(&places.vault, 0o711).map_err(io_error("making", &places.vault))?;
    // With `loop`, mount finds a device that is free (or has this image already) and makes it go away with the mount.
    let options = ["-t", "xfs", "-o", "loop,noatime,nodev,nosuid"].map(Path::new);
    run("mount", "mount", &[&options[..], &[&places.image, &places.vault]].concat())?;
    if let Some(mount) = places.mounted()? {
        // Spares the page cache a second copy of everything; not every file system around the image can do it.
        if let Err(error) = run("losetup", "mount", &[Path::new("--direct-io=on"), &mount.source]) {
            tracing::debug!(%error, "the image is cached twice");
        }
    }
    Ok(())
}

fn run(program: &'static str, package: &'static str, arguments: &[&Path]) -> Result<(), PlaceError> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let command = || {
        let words: Vec<_> = arguments.iter().map(|argument| argument.display().to_string()).collect();
        format!("{program} {}", words.join(" "))
    };
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(PlaceError::Program {
                command: command(),
                cause: format!("{}: {}", output.status, said.trim()),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(PlaceError::NoProgram { program, package })
        }
        Err(error) => Err(PlaceError::Program { command: command(), cause: error.to_string() }),
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |cause| PlaceError::Io { what, path, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_could_never_be_made_or_filled_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of(dir.path()).unwrap();
        for bytes in [MIN_IMAGE_BYTES - 1, u64::MAX] {
            assert!(matches!(check_size(&places, bytes), Err(PlaceError::BadSize { .. })), "{bytes}");
        }
    }

    #[test]
    fn looking_at_a_data_directory_leaves_nothing_there() {
        let dir = tempfile::tempdir().unwrap();
        let inspection = inspect(dir.path()).unwrap();
        assert!(!inspection.mounted && inspection.image_bytes.is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = run("mkfs.torpor-has-none", "xfsprogs", &[]).unwrap_err();
        assert!(error.to_string().contains("install the package xfsprogs"), "{error}");
    }
}

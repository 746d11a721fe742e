//! Moving between file systems, which the kernel's rename cannot do.
//!
//! The tree is copied beside its destination under a temporary name, with owners, modes, times and extended
//! attributes, then renamed into place, and the source removed last. So the destination is either what it was or
//! complete, and whatever fails on the way leaves the source as it was.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mkfifoat, utimensat};

use super::error::FileError;

/// Copies `source` to `destination` on another file system, then removes it.
pub(crate) fn move_across(source: &Path, destination: &Path) -> Result<(), FileError> {
    let temporary = beside(destination);
    let moved = copy(source, &temporary).and_then(|()| {
        fs::rename(&temporary, destination)
            .map_err(|error| FileError::from_io("renaming to", destination, error))
    });
    if let Err(error) = moved {
        discard(&temporary);
        return Err(error);
    }
    super::operations::remove(source)
}

/// A name for a temporary neighbour of `path` that no other call uses.
pub(crate) fn beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    // Names are at most 255 bytes long; the suffix is what makes it unique.
    let number = CALLS.fetch_add(1, Ordering::Relaxed);
    let suffix = format!(".torpor-{}-{number}", std::process::id());
    if name.len() + suffix.len() > 255 {
        name = OsString::from(".");
    }
    name.push(suffix);
    path.with_file_name(name)
}

fn discard(path: &Path) {
    if let Err(error) = super::operations::remove(path) {
        tracing::warn!(path = %path.display(), %error, "a temporary copy could not be removed");
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    let fail = |error: io::Error| FileError::from_io("copying", from, error);
    let found = fs::symlink_metadata(from).map_err(fail)?;
    match FileType::from_raw_mode(found.mode()) {
        FileType::Directory => {
            fs::DirBuilder::new().mode(0o700).create(to).map_err(fail)?;
            for entry in fs::read_dir(from).map_err(fail)? {
                let name = entry.map_err(fail)?.file_name();
                copy(&from.join(&name), &to.join(&name))?;
            }
        }
        FileType::RegularFile => {
            let mut source = File::open(from).map_err(fail)?;
            let mut target =
                File::options().write(true).create_new(true).mode(0o600).open(to).map_err(fail)?;
            io::copy(&mut source, &mut target).map_err(fail)?;
        }
        FileType::Symlink => symlink(fs::read_link(from).map_err(fail)?, to).map_err(fail)?,
        FileType::Fifo => {
            mkfifoat(CWD, to, Mode::from_raw_mode(0o600)).map_err(|errno| fail(errno.into()))?
        }
        // A socket or device is tied to where it is.
        _ => {
            return Err(FileError::OtherFileSystem {
                from: from.to_owned(),
                to: to.to_owned(),
                reason: "sockets and devices cannot be copied".into(),
            });
        }
    }
    copy_attributes(from, to, &found).map_err(fail)
}

/// Owner, then mode (changing the owner clears bits of it), extended attributes and times.
fn copy_attributes(from: &Path, to: &Path, found: &fs::Metadata) -> io::Result<()> {
    lchown(to, Some(found.uid()), Some(found.gid()))?;
    if !found.is_symlink() {
        for name in xattr::list(from).into_iter().flatten() {
            if let Some(value) = xattr::get(from, &name)?
                && let Err(error) = xattr::set(to, &name, &value)
            {
                tracing::debug!(path = %to.display(), ?name, %error, "an extended attribute could not be copied");
            }
        }
        fs::set_permissions(to, found.permissions())?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(found.atime(), found.atime_nsec()),
        last_modification: time(found.mtime(), found.mtime_nsec()),
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_arrives_as_it_was_and_is_gone_where_it_was() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "contents").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        xattr::set(from.join("sub/file"), "user.e2b.key", b"value").unwrap();
        symlink("sub/file", from.join("link")).unwrap();
        let before = fs::metadata(from.join("sub/file")).unwrap();

        move_across(&from, &to).unwrap();

        assert!(!from.exists());
        let after = fs::metadata(to.join("sub/file")).unwrap();
        assert_eq!((after.mode(), after.mtime_nsec()), (before.mode(), before.mtime_nsec()));
        assert_eq!(fs::read_to_string(to.join("link")).unwrap(), "contents");
        assert_eq!(xattr::get(to.join("sub/file"), "user.e2b.key").unwrap().unwrap(), b"value");
    }

    #[test]
    fn what_cannot_be_copied_stays_whole() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("file"), "contents").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        assert!(matches!(move_across(&from, &to), Err(FileError::OtherFileSystem { .. })));
        assert_eq!(fs::read_to_string(from.join("file")).unwrap(), "contents");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing half-done is left");
    }
}

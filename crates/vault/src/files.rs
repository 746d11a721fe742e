//! Small file operations that keep their promise after a loss of power.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a directory, unless it is there, with `mode`.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::set_permissions(dir, Permissions::from_mode(mode))
}

/// Writes a new read-only file and makes its content durable.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content)?;
    seal(&file)
}

/// Makes a file read-only, and its content durable.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o444))?;
    file.sync_all()
}

/// Whether files can be cloned in `dir`. Tried with two files that have no name, so nothing can be left behind.
pub(crate) fn clones(dir: &Path) -> io::Result<bool> {
    let unnamed = || -> io::Result<Option<File>> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(Some(fd.into())),
            // No file system that can clone lacks unnamed files.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let (Some(mut from), Some(to)) = (unnamed()?, unnamed()?) else { return Ok(false) };
    from.write_all(&[1; 4096])?;
    // Whatever the reason it does not work: there is no vault without it.
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

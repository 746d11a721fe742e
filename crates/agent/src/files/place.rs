//! Putting files and directories where a user wants them, as root, without being led astray.
//!
//! The agent runs as root and gives what it makes to the user who asked. Between making and giving, a process in the
//! sandbox could swap a symbolic link in; `chown` by path would then give away whatever the link points at. So
//! nothing here uses a path twice: directories are walked by descriptor, what was made is opened without following
//! links, and ownership is changed through the open descriptor.
//!
//! Links that were there before are followed, as any program does: writing to a link writes to its target.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, fchown, fstat, mkdirat, openat, statat, unlinkat,
};
use rustix::io::Errno;

use super::error::FileError;

/// Mode of new directories.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// Mode of new files.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
/// How often a name may change hands between two looks at it before the agent gives up.
const RACE_ATTEMPTS: usize = 16;

/// Whom new files and directories are given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The user's number.
    pub(crate) uid: u32,
    /// The number of the user's primary group.
    pub(crate) gid: u32,
}

/// A directory, held open.
#[derive(Debug)]
pub(crate) struct Directory {
    handle: OwnedFd,
    /// Whether the last component was made by this call.
    pub(crate) created: bool,
}

/// A file open for writing, and how to take it back if it was made for this.
#[derive(Debug)]
pub(crate) struct Target {
    /// The open file, positioned at its start, contents untouched.
    pub(crate) file: File,
    /// Whether it is new.
    pub(crate) created: bool,
    directory: OwnedFd,
    name: OsString,
}

/// Opens the directory at `path`, making it and its missing parents for `owner`.
pub(crate) fn make_directories(path: &Path, owner: Owner) -> Result<Directory, FileError> {
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut so_far = PathBuf::from("/");
    let fail = |at: &Path, errno: Errno| FileError::from_io("making directory", at, errno);
    let mut directory = Directory {
        handle: openat(CWD, "/", open, Mode::empty()).map_err(|e| fail(&so_far, e))?,
        created: false,
    };
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::ParentDir => OsStr::new(".."),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
        };
        so_far.push(name);
        let mut attempts = RACE_ATTEMPTS;
        directory = loop {
            match openat(&directory.handle, name, open, Mode::empty()) {
                Ok(handle) => break Directory { handle, created: false },
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(fail(&so_far, errno)),
            }
            match mkdirat(&directory.handle, name, DIRECTORY_MODE) {
                Ok(()) => {
                    let handle = openat(
                        &directory.handle,
                        name,
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                        Mode::empty(),
                    )
                    .map_err(|errno| fail(&so_far, errno))?;
                    give(&handle, owner).map_err(|errno| fail(&so_far, errno))?;
                    break Directory { handle, created: true };
                }
                // Somebody else made it just now, or a link with this name leads nowhere.
                Err(Errno::EXIST) if attempts > 0 => attempts -= 1,
                Err(Errno::EXIST) => return Err(FileError::NotADirectory(so_far)),
                Err(errno) => return Err(fail(&so_far, errno)),
            }
        };
    }
    Ok(directory)
}

/// Opens the file at `path` for writing, making it and its missing parents for `owner`. An existing file keeps its
/// mode and contents, but is given to `owner`.
pub(crate) fn open_target(path: &Path, owner: Owner) -> Result<Target, FileError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(FileError::IsADirectory(path.to_owned()));
    };
    let directory = make_directories(parent, owner)?.handle;
    let fail = |errno: Errno| FileError::from_io("opening", path, errno);
    // Without waiting: opening a pipe that nobody reads would block for good.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut attempts = RACE_ATTEMPTS;
    let (file, created) = loop {
        match openat(&directory, name, flags, Mode::empty()) {
            Ok(file) => break (file, false),
            Err(Errno::NOENT) => {}
            // A pipe without a reader, or a socket.
            Err(Errno::NXIO) => return Err(FileError::NotRegular(path.to_owned())),
            Err(errno) => return Err(fail(errno)),
        }
        match openat(&directory, name, flags | OFlags::CREATE | OFlags::EXCL, FILE_MODE) {
            Ok(file) => break (file, true),
            Err(Errno::EXIST) if attempts > 0 => attempts -= 1,
            // A link that leads to where no file is yet: make that file.
            Err(Errno::EXIST) => {
                break (openat(&directory, name, flags | OFlags::CREATE, FILE_MODE).map_err(fail)?, false);
            }
            Err(errno) => return Err(fail(errno)),
        }
    };
    let stat = fstat(&file).map_err(fail)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(FileError::IsADirectory(path.to_owned())),
        _ => return Err(FileError::NotRegular(path.to_owned())),
    }
    let target = Target { file: File::from(file), created, directory, name: name.to_owned() };
    match give(&target.file, owner) {
        Ok(()) => Ok(target),
        // Files of the kernel (procfs and its kind) cannot be given away, but can be written.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ROFS | Errno::INVAL) if !created => Ok(target),
        Err(errno) => {
            target.take_back();
            Err(FileError::from_io("changing the owner of", path, errno))
        }
    }
}

/// Gives an open file to `owner`, unless it has it already.
fn give(file: impl AsFd, owner: Owner) -> rustix::io::Result<()> {
    let stat = fstat(&file)?;
    if (stat.st_uid, stat.st_gid) == (owner.uid, owner.gid) {
        return Ok(());
    }
    fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
}

// === impl Target ===

impl Target {
    /// Removes the file again if it was made by [`open_target`] and still bears its name. Errors do not matter: the
    /// operation has failed already.
    pub(crate) fn take_back(&self) {
        if !self.created {
            return;
        }
        let same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        let (Ok(ours), Ok(there)) =
            (fstat(&self.file), statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW))
        else {
            return;
        };
        if same(&ours, &there)
            && let Err(error) = unlinkat(&self.directory, &self.name, AtFlags::empty())
        {
            tracing::warn!(%error, "an incomplete upload could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn me() -> Owner {
        Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() }
    }

    #[test]
    fn missing_parents_are_made_and_present_ones_left_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("there")).unwrap();
        let made = make_directories(&root.path().join("there/a/b"), me()).unwrap();
        assert!(made.created);
        assert_eq!(fs::metadata(root.path().join("there/a/b")).unwrap().mode() & 0o777, 0o755);
        assert!(!make_directories(&root.path().join("there/a"), me()).unwrap().created);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        let error = make_directories(&root.path().join("file/a"), me()).unwrap_err();
        assert!(matches!(error, FileError::NotADirectory(path) if path == root.path().join("file")));
    }

    #[test]
    fn a_link_to_a_directory_is_walked_and_a_link_to_nowhere_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        symlink("real", root.path().join("link")).unwrap();
        symlink("missing", root.path().join("dangling")).unwrap();
        make_directories(&root.path().join("link/sub"), me()).unwrap();
        assert!(root.path().join("real/sub").is_dir());
        assert!(matches!(
            make_directories(&root.path().join("dangling/sub"), me()),
            Err(FileError::NotADirectory(_))
        ));
    }

    #[test]
    fn an_opened_target_keeps_its_contents_until_it_is_written() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "old").unwrap();
        let target = open_target(&path, me()).unwrap();
        assert!(!target.created);
        target.take_back();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }

    #[test]
    fn only_a_file_of_our_own_making_is_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dir/file");
        let target = open_target(&path, me()).unwrap();
        assert!(target.created);
        target.take_back();
        assert!(!path.exists());

        let target = open_target(&path, me()).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        target.take_back();
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
    }

    #[test]
    fn writing_to_a_link_writes_to_its_target() {
        let root = tempfile::tempdir().unwrap();
        symlink("later", root.path().join("link")).unwrap();
        open_target(&root.path().join("link"), me()).unwrap();
        assert!(root.path().join("later").is_file());
    }

    #[test]
    fn directories_pipes_and_devices_are_no_targets() {
        let root = tempfile::tempdir().unwrap();
        let pipe = root.path().join("pipe");
        rustix::fs::mkfifoat(CWD, &pipe, FILE_MODE).unwrap();
        assert!(matches!(open_target(&pipe, me()), Err(FileError::NotRegular(_))));
        assert!(matches!(open_target(root.path(), me()), Err(FileError::IsADirectory(_))));
        assert!(matches!(open_target(Path::new("/"), me()), Err(FileError::IsADirectory(_))));
    }
}

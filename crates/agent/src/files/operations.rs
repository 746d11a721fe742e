//! The blocking file operations behind the filesystem RPCs: plain functions of absolute paths.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use torpor_envd_api::filesystem::EntryInfo;

use super::across::move_across;
use super::entry::{Detail, describe};
use super::error::FileError;
use super::place::{Owner, make_directories};
use crate::users::names;

/// Describes one entry.
pub(crate) fn stat(path: &Path, detail: Detail) -> Result<EntryInfo, FileError> {
    describe(path, detail, &names())
}

/// Makes a directory and its missing parents, all owned by `owner`.
pub(crate) fn make_directory(path: &Path, owner: Owner, detail: Detail) -> Result<EntryInfo, FileError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(FileError::DirectoryExists(path.to_owned())),
        Ok(_) => return Err(in_the_way(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(FileError::from_io("reading", path, error)),
    }
    match make_directories(path, owner) {
        Ok(made) if made.created => stat(path, detail),
        // Somebody else was quicker.
        Ok(_) => Err(FileError::DirectoryExists(path.to_owned())),
        Err(FileError::NotADirectory(file)) => Err(in_the_way(&file)),
        Err(error) => Err(error),
    }
}

fn in_the_way(path: &Path) -> FileError {
    FileError::Invalid(format!("path already exists but it is not a directory: '{}'", path.display()))
}

/// Renames `source` to `destination`, whose missing parents are made for `owner`. Between file systems the entry is
/// copied with all its attributes, then removed.
pub(crate) fn rename(
    source: &Path,
    destination: &Path,
    owner: Owner,
    detail: Detail,
) -> Result<EntryInfo, FileError> {
    // Before the parents are made: a missing source leaves no trace.
    fs::symlink_metadata(source).map_err(|error| FileError::from_io("reading", source, error))?;
    if let Some(parent) = destination.parent() {
        make_directories(parent, owner)?;
    }
    match fs::rename(source, destination) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
            move_across(source, destination)?
        }
        Err(error) => {
            return Err(match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::INVAL) => FileError::Invalid(format!(
                    "cannot move '{}' into itself: '{}'",
                    source.display(),
                    destination.display()
                )),
                Some(Errno::NOTEMPTY | Errno::EXIST) => FileError::Invalid(format!(
                    "directory '{}' exists and is not empty",
                    destination.display()
                )),
                Some(Errno::ISDIR) => FileError::IsADirectory(destination.to_owned()),
                Some(Errno::NOTDIR) => FileError::NotADirectory(destination.to_owned()),
                _ => FileError::from_io("renaming", source, error),
            });
        }
    }
    stat(destination, detail)
}

/// Lists what is below a directory, down to `depth` levels, each directory's entries in the order of their names
/// and before the next sibling's. A link to a directory is followed if it is the root, and only then.
pub(crate) fn list(root: &Path, depth: u32, detail: Detail) -> Result<Vec<EntryInfo>, FileError> {
    let found = fs::metadata(root).map_err(|error| FileError::from_io("reading directory", root, error))?;
    if !found.is_dir() {
        return Err(FileError::NotADirectory(root.to_owned()));
    }
    let names = names();
    let mut entries = Vec::new();
    let mut pending = children(root)?;
    pending.reverse();
    let mut pending: Vec<(PathBuf, u32)> = pending.into_iter().map(|path| (path, 1)).collect();
    while let Some((path, level)) = pending.pop() {
        match describe(&path, detail, &names) {
            Ok(entry) => entries.push(entry),
            // Gone since its directory was read.
            Err(FileError::NotFound(_)) => continue,
            Err(error) => return Err(error),
        }
        if level < depth && fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            match children(&path) {
                Ok(below) => pending.extend(below.into_iter().rev().map(|path| (path, level + 1))),
                Err(FileError::NotFound(_) | FileError::NotADirectory(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(entries)
}

/// The paths in a directory, sorted by their bytes.
fn children(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut paths = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
        .map_err(|error| FileError::from_io("reading directory", directory, error))?;
    paths.sort_unstable();
    Ok(paths)
}

/// Removes an entry and everything below it; links are removed, never followed. Nothing there is fine too.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    if path.parent().is_none() {
        return Err(FileError::Invalid("refusing to remove the root directory '/'".into()));
    }
    let removed = match fs::symlink_metadata(path) {
        // Walks by descriptor, so that a link swapped in meanwhile is not followed either.
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if !is_missing(&error) => Err(FileError::from_io("removing", path, error)),
        _ => Ok(()),
    }
}

/// Whether nothing can be at a path: it is missing, or one of its parents is a file.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn me() -> Owner {
        Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() }
    }

    fn listed(root: &Path, depth: u32) -> Vec<String> {
        list(root, depth, Detail::Full)
            .unwrap()
            .into_iter()
            .map(|entry| {
                entry.path.strip_prefix(root.to_str().unwrap()).unwrap().trim_start_matches('/').to_owned()
            })
            .collect()
    }

    #[test]
    fn a_listing_goes_as_deep_as_asked_in_order_of_names() {
        let root = tempfile::tempdir().unwrap();
        for path in ["b/c/d", "a"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        fs::write(root.path().join("b/a.txt"), "").unwrap();
        assert_eq!(listed(root.path(), 1), ["a", "b"]);
        assert_eq!(listed(root.path(), 2), ["a", "b", "b/a.txt", "b/c"]);
        assert_eq!(listed(root.path(), u32::MAX), ["a", "b", "b/a.txt", "b/c", "b/c/d"]);
    }

    #[test]
    fn links_are_followed_at_the_root_of_a_listing_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        fs::write(root.path().join("real/file"), "").unwrap();
        symlink("real", root.path().join("link")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        assert_eq!(listed(&root.path().join("link"), 1), ["file"]);
        assert_eq!(listed(root.path(), 3), ["link", "loop", "real", "real/file"]);
        assert!(matches!(list(&root.path().join("loop"), 1, Detail::Full), Err(FileError::TooManyLinks(_))));
    }

    #[test]
    fn removing_never_follows_a_link() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("kept")).unwrap();
        fs::write(root.path().join("kept/file"), "").unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        symlink("../kept", root.path().join("dir/link")).unwrap();
        symlink("kept", root.path().join("link")).unwrap();
        for path in ["link", "dir", "missing", "missing/below", "kept/file/below"] {
            remove(&root.path().join(path)).unwrap();
        }
        assert_eq!(listed(root.path(), 2), ["kept", "kept/file"]);
        assert!(matches!(remove(Path::new("/")), Err(FileError::Invalid(_))));
    }

    #[test]
    fn a_move_without_a_source_leaves_no_trace() {
        let root = tempfile::tempdir().unwrap();
        let moved = rename(&root.path().join("missing"), &root.path().join("a/b"), me(), Detail::Full);
        assert!(matches!(moved, Err(FileError::NotFound(_))));
        assert!(!root.path().join("a").exists());
    }

    #[test]
    fn what_stands_in_the_way_of_a_directory_is_said() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let make = |name: &str| make_directory(&root.path().join(name), me(), Detail::Full);
        assert!(make("a/b/c").is_ok());
        assert!(matches!(make("a/b"), Err(FileError::DirectoryExists(_))));
        assert!(matches!(make("file"), Err(FileError::Invalid(_))));
        assert!(matches!(make("file/below"), Err(FileError::NotADirectory(_) | FileError::Invalid(_))));
    }

    proptest! {
        #[test]
        fn a_listing_is_what_was_made(names in proptest::collection::btree_set("[a-c]{1,2}(/[a-c]{1,2}){0,2}", 0..8)) {
            let root = tempfile::tempdir().unwrap();
            for name in &names {
                fs::create_dir_all(root.path().join(name)).unwrap();
            }
            let mut expected: Vec<PathBuf> = names
                .iter()
                .flat_map(|name| Path::new(name).ancestors().map(Path::to_owned).collect::<Vec<_>>())
                .filter(|path| !path.as_os_str().is_empty())
                .collect();
            expected.sort();
            expected.dedup();
            let got: Vec<PathBuf> = listed(root.path(), 9).into_iter().map(PathBuf::from).collect();
            prop_assert_eq!(got, expected);
        }
    }
}

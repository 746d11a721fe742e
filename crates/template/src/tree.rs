//! Removes trees that may have something mounted in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Removes the tree at `path`, if there is one. What an interrupted build left mounted below it is unmounted
/// first; if that fails, nothing is removed, since removal would reach through the mount into the host's own files.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let path = match fs::canonicalize(path) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for mount in mounts_below(&fs::read_to_string("/proc/self/mountinfo")?, &path) {
        unmount(&mount, UnmountFlags::DETACH)?;
    }
    if let Some(mount) = mounts_below(&fs::read_to_string("/proc/self/mountinfo")?, &path).first() {
        return Err(io::Error::other(format!("{} is still mounted", mount.display())));
    }
    match fs::symlink_metadata(&path)?.is_dir() {
        true => fs::remove_dir_all(&path),
        false => fs::remove_file(&path),
    }
}

/// Mount points strictly below `path`, deepest (latest) first.
fn mounts_below(mountinfo: &str, path: &Path) -> Vec<PathBuf> {
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(path) && point != path)
        .collect();
    mounts.reverse();
    mounts
}

/// Mount points are written with `\040` for a space, and so on.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                bytes.push(value);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_tree_are_found_deepest_first_and_neighbours_are_left_alone() {
        let mountinfo = "22 1 0:1 / / rw - ext4 /dev/vda rw\n\
            30 22 0:2 / /c/tree/proc rw - proc proc rw\n\
            31 22 0:3 / /c/tree/dev rw - tmpfs none rw\n\
            32 31 0:4 / /c/tree/dev/my\\040pts rw - devpts none rw\n\
            33 22 0:5 / /c/tree2/proc rw - proc proc rw\n";
        let found = mounts_below(mountinfo, Path::new("/c/tree"));
        let wanted = ["/c/tree/dev/my pts", "/c/tree/dev", "/c/tree/proc"].map(PathBuf::from);
        assert_eq!(found, wanted);
    }

    #[test]
    fn removing_what_is_not_there_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("nothing")).unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }
}

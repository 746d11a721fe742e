//! What is mounted where, from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    pub(crate) file_system: String,
    pub(crate) source: PathBuf,
}

/// The file system that `path` is on. `path` has to be absolute and free of symbolic links.
pub(crate) fn mount_of(path: &Path) -> io::Result<Option<Mount>> {
    let mounts = parse(&std::fs::read("/proc/self/mountinfo")?);
    // Of mounts on top of each other the last is the one seen.
    Ok(mounts
        .into_iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count()))
}

/// The file behind a loop device; `None` if `device` is none.
pub(crate) fn backing_file(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?;
    let file = std::fs::read(Path::new("/sys/block").join(name).join("loop/backing_file")).ok()?;
    Some(OsString::from_vec(file.strip_suffix(b"\n").unwrap_or(&file).to_vec()).into())
}

fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = unescape(fields.nth(4)?);
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let file_system = String::from_utf8_lossy(rest.next()?).into_owned();
        Some(Mount { point, file_system, source: unescape(rest.next()?) })
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// Spaces, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::ffi::OsStr::from_bytes(digits).to_str()?, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_space_is_understood() {
        let info = b"22 1 8:1 / / rw - ext4 /dev/vda rw\n40 22 7:0 / /var/my\\040data/vault rw,noatime shared:1 - xfs /dev/loop0 rw,discard\n";
        let mounts = parse(info);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].point, Path::new("/var/my data/vault"));
        assert_eq!(
            (mounts[1].file_system.as_str(), mounts[1].source.as_path()),
            ("xfs", Path::new("/dev/loop0"))
        );
    }

    #[test]
    fn every_path_is_on_a_file_system() {
        assert!(mount_of(Path::new("/proc/self")).unwrap().is_some_and(|mount| mount.file_system == "proc"));
    }
}

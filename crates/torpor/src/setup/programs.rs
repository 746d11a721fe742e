//! The host programs Torpor uses, whether they are there, and which version of QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A program, or a file that comes with a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needed {
    /// Name of the program, or absolute path of the file.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
    /// The package on Debian and Ubuntu.
    pub(crate) debian: &'static str,
    /// The package on Fedora.
    pub(crate) fedora: &'static str,
    /// The package on Arch.
    pub(crate) arch: &'static str,
    /// The package on Alpine.
    pub(crate) alpine: &'static str,
}

/// QEMU for x86-64 guests, with emulation.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const fn needed(
    name: &'static str,
    purpose: &'static str,
    [debian, fedora, arch, alpine]: [&'static str; 4],
) -> Needed {
    Needed { name, purpose, debian, fedora, arch, alpine }
}

/// Everything Torpor runs.
pub(crate) const NEEDED: &[Needed] = &[
    needed(
        QEMU,
        "runs machines",
        ["qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86", "qemu-system-x86_64"],
    ),
    needed("nft", "keeps sandboxes apart", ["nftables"; 4]),
    needed(
        "mmdebstrap",
        "builds root file systems",
        ["mmdebstrap", "mmdebstrap", "mmdebstrap (AUR)", "mmdebstrap"],
    ),
    needed(
        KEYRING,
        "proves that Debian's packages are Debian's",
        ["debian-archive-keyring", "debian-keyring", "debian-archive-keyring", "debian-archive-keyring"],
    ),
    needed("mke2fs", "makes disk images", ["e2fsprogs"; 4]),
    needed("e2fsck", "checks disk images", ["e2fsprogs"; 4]),
    needed("resize2fs", "resizes disk images", ["e2fsprogs", "e2fsprogs", "e2fsprogs", "e2fsprogs-extra"]),
    needed("mkfs.xfs", "makes the vault's file system", ["xfsprogs"; 4]),
    needed("mount", "mounts the vault", ["mount", "util-linux-core", "util-linux", "mount"]),
    needed("unshare", "encloses builds", ["util-linux", "util-linux-core", "util-linux", "util-linux-misc"]),
    needed(
        "setpriv",
        "ends builds with their parent",
        ["util-linux", "util-linux-core", "util-linux", "setpriv"],
    ),
];

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QemuVersion {
    major: u32,
    minor: u32,
}

/// The least QEMU that works.
pub(crate) const QEMU_LEAST: QemuVersion = QemuVersion { major: 8, minor: 2 };
/// The least QEMU whose emulation is good.
pub(crate) const QEMU_GOOD: QemuVersion = QemuVersion { major: 10, minor: 0 };

// === impl Needed ===

impl Needed {
    /// Where it is on this host.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        find(self.name)
    }
}

/// Where `program` is: in the search path, or in a system directory that a user's search path may lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Path::new(program).exists().then(|| program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// What Torpor runs and this host lacks.
pub(crate) fn missing() -> Vec<Needed> {
    NEEDED.iter().filter(|needed| needed.find().is_none()).copied().collect()
}

/// The version of the QEMU at `program`; `None` if it cannot be run or understood.
pub(crate) fn qemu_version(program: &Path) -> Option<QemuVersion> {
    QemuVersion::parse(&qemu_version_text(program)?)
}

/// The whole version of the QEMU at `program`, for instance `10.0.2`.
pub(crate) fn qemu_version_text(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    version_text(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn version_text(text: &str) -> Option<String> {
    Some(text.split("version ").nth(1)?.split_whitespace().next()?.to_owned())
}

// === impl QemuVersion ===

impl QemuVersion {
    /// Reads `10.0.2`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', '-']);
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
pub(crate) fn version(major: u32, minor: u32) -> QemuVersion {
    QemuVersion { major, minor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_own_words_for_its_version_are_understood() {
        for (text, wanted) in [
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright",
                version(10, 0),
            ),
            ("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u15)", version(7, 2)),
            ("QEMU emulator version 11.1.0-rc2\n", version(11, 1)),
        ] {
            assert_eq!(version_text(text).and_then(|text| QemuVersion::parse(&text)), Some(wanted), "{text}");
        }
        assert_eq!(version_text("command not found"), None);
        assert!(version(7, 2) < version(8, 0) && version(9, 2) < QEMU_GOOD && version(10, 1) > QEMU_GOOD);
    }
}

//! The archive a machine boots from: the agent as `/init`, and the modules it loads before it can mount the disk.
//!
//! ```text
//! /init                    the agent, mode 0755
//! /modules.list            absolute paths of the modules, one a line, in the order to load them
//! /modules/<name>.ko       the modules, uncompressed
//! /dev /proc /sys /root    empty directories to mount on
//! /dev/console             character device 5:1, so that the first program has a standard output
//! ```
//!
//! It is an uncompressed `newc` cpio archive: under emulation the guest would need longer to decompress than to copy.

use std::io::{self, Write};

use cpio::NewcBuilder;
use cpio::newc::ModeFileType;

/// A kernel module for the initramfs.
#[derive(Debug, Clone)]
pub struct Module {
    /// File name without directories, ending in `.ko`.
    pub file_name: String,
    /// The module, uncompressed.
    pub bytes: Vec<u8>,
}

/// Writes the archive to `out` and gives `out` back.
pub fn write<W: Write>(out: W, agent: &[u8], modules: &[Module]) -> io::Result<W> {
    let mut archive = Archive { out, next_inode: 1 };
    for directory in ["dev", "proc", "sys", "root", "modules"] {
        archive.directory(directory)?;
    }
    archive.console()?;
    archive.file("init", 0o755, agent)?;
    let mut list = String::new();
    for module in modules {
        let path = format!("modules/{}", module.file_name);
        archive.file(&path, 0o644, &module.bytes)?;
        list.push('/');
        list.push_str(&path);
        list.push('\n');
    }
    archive.file("modules.list", 0o644, list.as_bytes())?;
    cpio::newc::trailer(archive.out)
}

struct Archive<W> {
    out: W,
    next_inode: u32,
}

// === impl Archive ===

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, kind: ModeFileType, mode: u32) -> NewcBuilder {
        let inode = self.next_inode;
        self.next_inode += 1;
        NewcBuilder::new(name).ino(inode).mode(mode).set_mode_file_type(kind)
    }

    fn directory(&mut self, name: &str) -> io::Result<()> {
        let entry = self.entry(name, ModeFileType::Directory, 0o755).nlink(2);
        entry.write(&mut self.out, 0).finish().map(|_| ())
    }

    fn console(&mut self) -> io::Result<()> {
        let entry = self.entry("dev/console", ModeFileType::Char, 0o600).rdev_major(5).rdev_minor(1);
        entry.write(&mut self.out, 0).finish().map(|_| ())
    }

    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let size = u32::try_from(bytes.len())
            .map_err(|_| io::Error::other(format!("{name} is too large for an initramfs")))?;
        let mut writer = self.entry(name, ModeFileType::Regular, mode).write(&mut self.out, size);
        writer.write_all(bytes)?;
        writer.finish().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// Name, mode, device number and contents.
    type Listed = (String, u32, (u32, u32), Vec<u8>);

    fn list(archive: &[u8]) -> Vec<Listed> {
        let mut rest = io::Cursor::new(archive);
        let mut entries = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            let entry = reader.entry();
            let device = (entry.rdev_major(), entry.rdev_minor());
            entries.push((entry.name().to_owned(), entry.mode(), device, bytes));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_archive_holds_the_agent_the_modules_and_their_order() {
        let module = |name: &str| Module { file_name: name.to_owned(), bytes: name.as_bytes().to_vec() };
        let archive = write(Vec::new(), b"agent", &[module("b.ko"), module("a.ko")]).unwrap();
        let entries = list(&archive);
        let get = |name: &str| entries.iter().find(|entry| entry.0 == name).unwrap();
        assert_eq!((get("init").1, get("init").3.as_slice()), (0o100755, b"agent".as_slice()));
        assert_eq!(get("modules.list").3, b"/modules/b.ko\n/modules/a.ko\n");
        assert_eq!(get("modules/a.ko").3, b"a.ko");
        assert_eq!((get("dev/console").1, get("dev/console").2), (0o020600, (5, 1)));
        assert_eq!(get("proc").1, 0o040755);
    }

    #[test]
    fn the_same_contents_make_the_same_archive() {
        let make = || write(Vec::new(), b"agent", &[]).unwrap();
        assert_eq!(make(), make());
    }
}

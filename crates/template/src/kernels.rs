//! The kernels that sandboxes without memory boot with, kept apart from the cache of root file systems, which may go.
//!
//! ```text
//! <kernels>/<blake3 of the kernel>/
//!   vmlinuz           the kernel
//!   modules/NN-<name> the modules it needs to mount the disk; NN is the order to load them
//!   initramfs         made of the modules and the agent of the newest server that started here
//! ```
//!
//! A kernel is never removed: it is small, and some snapshot may name it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::initramfs::{self, Module};
use crate::rootfs::Rootfs;

const KERNEL: &str = "vmlinuz";
const MODULES: &str = "modules";
const INITRAMFS: &str = "initramfs";

/// Keeps the kernel of `rootfs` below `kernels`. No harm if it is there.
pub fn keep(kernels: &Path, rootfs: &Rootfs, agent: &[u8]) -> io::Result<()> {
    let hash = &rootfs.facts().kernel_blake3;
    let place = kernels.join(hash);
    if !place.is_dir() {
        let aside = kernels.join(format!("{hash}.new"));
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::create_dir_all(aside.join(MODULES))?;
        let kernel = fs::read(rootfs.kernel())?;
        write_durably(&aside.join(KERNEL), |file| file.write_all(&kernel))?;
        for module in rootfs.modules().map_err(io::Error::other)? {
            let path = aside.join(MODULES).join(&module.file_name);
            write_durably(&path, |file| file.write_all(&module.bytes))?;
        }
        File::open(&aside)?.sync_all()?;
        fs::rename(&aside, &place)?;
        File::open(kernels)?.sync_all()?;
    }
    make_initramfs(&place, agent)
}

/// Gives every kernel below `kernels` an initramfs with `agent` in it: that of the server that is starting.
pub fn refresh(kernels: &Path, agent: &[u8]) -> io::Result<()> {
    let entries = match fs::read_dir(kernels) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let place = entry?.path();
        if place.join(KERNEL).is_file() && place.extension().is_none() {
            make_initramfs(&place, agent)?;
        }
    }
    Ok(())
}

fn make_initramfs(place: &Path, agent: &[u8]) -> io::Result<()> {
    let mut files: Vec<_> = fs::read_dir(place.join(MODULES))?.collect::<io::Result<_>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    let modules = files.iter().map(|file| {
        let file_name = file.file_name().to_string_lossy().into_owned();
        Ok(Module { file_name, bytes: fs::read(file.path())? })
    });
    let modules = modules.collect::<io::Result<Vec<_>>>()?;
    let aside = place.join("initramfs.new");
    write_durably(&aside, |file| initramfs::write(io::BufWriter::new(file), agent, &modules)?.flush())?;
    fs::rename(aside, place.join(INITRAMFS))
}

fn write_durably(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = File::create(path)?;
    write(&mut file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_gets_the_agent_of_the_server_that_starts() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("00ff");
        fs::create_dir_all(place.join(MODULES)).unwrap();
        fs::write(place.join(KERNEL), "kernel").unwrap();
        fs::write(place.join(MODULES).join("01-b.ko"), "b").unwrap();
        fs::write(place.join(MODULES).join("00-a.ko"), "a").unwrap();
        refresh(dir.path(), b"first agent").unwrap();
        refresh(dir.path(), b"second agent").unwrap();
        let module = |name: &str, text: &str| Module { file_name: name.into(), bytes: text.into() };
        let expected =
            initramfs::write(Vec::new(), b"second agent", &[module("00-a.ko", "a"), module("01-b.ko", "b")]);
        assert_eq!(fs::read(place.join(INITRAMFS)).unwrap(), expected.unwrap());
        refresh(&dir.path().join("nowhere"), b"agent").unwrap();
    }
}

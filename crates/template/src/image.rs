//! ext4 images: made from a tree, checked, resized, copied.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{SeekFrom, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;
use torpor_types::MIB;

use crate::command::{CommandError, command, run};

/// UUID of every root file system and seed of its directory hashes; fixed, so that one recipe makes one image.
const UUID: &str = "746f7270-6f72-4000-8000-000000000001";

/// Makes a sparse ext4 image of `disk_mib` MiB at `image` with the files of `tree`, their owners, modes and extended
/// attributes. No space is reserved for root, and every inode table and the journal are initialised now:
/// a kernel that did it later would write to every sandbox's disk for nothing.
pub fn make(tree: &Path, image: &Path, disk_mib: u32) -> Result<(), CommandError> {
    let options = format!("lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed={UUID}");
    run(command("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", "torpor", "-U", UUID])
        .args(["-E", &options, "-d"])
        .arg(tree)
        .arg(image)
        .arg(format!("{disk_mib}M")))?;
    Ok(())
}

/// Fails if the file system in `image` is not in perfect order; changes nothing.
pub fn check(image: &Path) -> Result<(), CommandError> {
    run(command("e2fsck").args(["-f", "-n"]).arg(image)).map(|_| ())
}

/// Makes the image at `path`, which is not in use, and its file system `disk_mib` MiB large.
pub fn resize(path: &Path, disk_mib: u32) -> Result<(), ResizeError> {
    let bytes = u64::from(disk_mib) * MIB;
    let length = fs::metadata(path)?.len();
    if length == bytes {
        return Ok(());
    }
    if bytes > length {
        ftruncate(OpenOptions::new().write(true).open(path)?, bytes).map_err(io::Error::from)?;
    }
    run(command("resize2fs").arg("-f").arg(path).arg(format!("{disk_mib}M")))?;
    if bytes < length {
        ftruncate(OpenOptions::new().write(true).open(path)?, bytes).map_err(io::Error::from)?;
    }
    Ok(())
}

/// An image could not be resized.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The file could not be changed.
    #[error("cannot change the size of the disk image: {0}")]
    Io(#[from] io::Error),
    /// `resize2fs` failed, for instance because the files do not fit.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Makes `to` equal to `from`, holes included: a clone where the file system can, else a copy of the data alone.
/// `to` must be empty and open for writing.
pub fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    ftruncate(to, length)?;
    // Through memory: the kernel copies by itself only between file systems of one kind.
    let mut buffer = vec![0; 1 << 20];
    let mut position = 0;
    while position < length {
        let start = match seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        let mut offset = start;
        while offset < end {
            let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
            let read = from.read_at(&mut buffer[..wanted], offset)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all_at(&buffer[..read], offset)?;
            offset += read as u64;
        }
        position = end;
    }
    Ok(())
}

/// Bytes `file` really takes.
pub fn allocated_bytes(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_copy_has_the_same_bytes_and_keeps_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let from = File::create_new(dir.path().join("from")).unwrap();
        ftruncate(&from, 64 * MIB).unwrap();
        for (offset, byte) in [(0_u64, 1_u8), (20 * MIB + 17, 2), (63 * MIB, 3)] {
            from.write_all_at(&[byte; 5000], offset).unwrap();
        }
        let from = File::open(dir.path().join("from")).unwrap();
        let to =
            OpenOptions::new().read(true).write(true).create_new(true).open(dir.path().join("to")).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert!(fs::read(dir.path().join("from")).unwrap() == fs::read(dir.path().join("to")).unwrap());
        assert!(allocated_bytes(&dir.path().join("to")).unwrap() < MIB);
    }

    #[test]
    fn an_image_made_from_a_tree_is_in_order_and_can_be_resized() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/hello"), "hello").unwrap();
        let image = dir.path().join("disk.ext4");
        make(&tree, &image, 64).unwrap();
        check(&image).unwrap();
        resize(&image, 256).unwrap();
        check(&image).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), 256 * MIB);
        resize(&image, 128).unwrap();
        check(&image).unwrap();
    }
}

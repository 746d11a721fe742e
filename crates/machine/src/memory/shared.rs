//! RAM as a file of the machine's own, which QEMU maps shared: what the guest writes is in the file.
//!
//! A snapshot's memory gets into it, and out of it again, by cloning, which copies nothing. But a file that is cloned has to be
//! on its disk first. So what a save costs is writing back what the guest wrote and the kernel has not written yet. For
//! a pause that is done when it was answered, in pieces, so that a resume need not wait for all of it; for a snapshot
//! of a guest that goes on, as much as can be is done before it is stopped.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fchown, ioctl_ficlone, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::process::Uid;

use crate::error::SaveError;
use crate::save::{LEAST_HOLE, SavedMemory, stretches};

/// What saving takes up in the vault beyond what the RAM file has taken up already: device state, hashes, and what the
/// file system needs for itself. The room for a page is reserved when the guest first writes to it.
pub(super) const ROOM_TO_SAVE: u64 = 16 << 20;

/// How much is flushed, or looked through, between two looks at whether the save is still wanted.
const PIECE: u64 = 8 << 20;
const PIECE_READ: usize = 1 << 20;

/// Rounds of flushing ahead, at most, and how long a round takes that had little to do.
const MOST_ROUNDS: u32 = 4;
const LITTLE: Duration = Duration::from_millis(10);

/// The file.
#[derive(Debug)]
pub(crate) struct RamFile {
    file: File,
    bytes: u64,
    /// Something of it could not be written to its disk. The kernel says so once, and may drop the pages: what the file holds
    /// from then on is not known to be what the guest wrote.
    damaged: AtomicBool,
}

// === impl RamFile ===

impl RamFile {
    /// Makes it, empty and sparse, for `uid` to open.
    pub(super) fn create(path: &Path, bytes: u64, uid: u32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(bytes)?;
        // QEMU opens its RAM by a path, if only through /proc/self/fd, and so needs the right to. The directory stays closed to
        // it.
        fchown(&file, Some(Uid::from_raw(uid)), None)?;
        Ok(Self { file, bytes, damaged: AtomicBool::new(false) })
    }

    /// Opens that of a machine that runs already.
    pub(super) fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let ram = Self { file, bytes, damaged: AtomicBool::new(false) };
        ram.check_len(&ram.file)?;
        Ok(ram)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes its content that of a snapshot's memory file. The machine must not have run.
    pub(super) async fn load(&self, snapshot: &File) -> io::Result<()> {
        self.check_len(snapshot)?;
        let (ram, snapshot) = (self.file.try_clone()?, snapshot.try_clone()?);
        let span = tracing::info_span!("machine.clone_memory");
        let cloning = move || span.in_scope(|| ioctl_ficlone(&ram, &snapshot));
        tokio::task::spawn_blocking(cloning).await.map_err(io::Error::other)?.map_err(io::Error::from)
    }

    /// Flushes what the guest wrote, while it writes more, until there is little left.
    #[tracing::instrument(name = "machine.flush_memory_ahead", skip_all)]
    pub(super) fn flush_ahead(&self) -> io::Result<()> {
        let mut before = Duration::MAX;
        for _ in 0..MOST_ROUNDS {
            let begun = Instant::now();
            // All of it, with what the file system keeps of it: cloning waits for that, too.
            self.file.sync_data().inspect_err(|_| self.damaged.store(true, Ordering::Release))?;
            let took = begun.elapsed();
            // A guest that writes as fast as its disk will not be caught up with.
            if took <= LITTLE || took > before / 2 {
                break;
            }
            before = took;
        }
        Ok(())
    }

    /// Clones it into `into`. The guest stands still; if it was flushed `ahead`, it shall not do so for long.
    pub(super) fn save<H>(
        &self,
        into: &File,
        ahead: bool,
        hold: &(impl Fn() -> Result<H, SaveError> + Sync),
    ) -> Result<SavedMemory, SaveError> {
        // Whoever took QEMU over could have cut it.
        self.check_len(&self.file).map_err(SaveError::Read)?;
        if !ahead {
            self.flush(hold)?;
        }
        if self.damaged.load(Ordering::Acquire) {
            return Err(SaveError::Damaged);
        }
        let held = hold()?;
        let cloning = tracing::info_span!("machine.clone_memory");
        if let Err(error) = cloning.in_scope(|| ioctl_ficlone(into, &self.file)) {
            // It flushes what is left before it clones.
            self.damaged.fetch_or(error == Errno::IO, Ordering::AcqRel);
            return Err(SaveError::Write(error.into()));
        }
        drop(held);
        let hole_bytes = if ahead { 0 } else { self.punch_zeros(into, hold)? };
        Ok(SavedMemory { hole_bytes, ..SavedMemory::default() })
    }

    #[tracing::instrument(name = "machine.flush_memory", skip_all)]
    fn flush<H>(&self, hold: &(impl Fn() -> Result<H, SaveError> + Sync)) -> Result<(), SaveError> {
        let mut at = 0;
        while at < self.bytes {
            // Asked, not kept: a guest that goes on need not wait for the disk.
            drop(hold()?);
            let written = torpor_sys::write_back(&self.file, at, PIECE);
            written.inspect_err(|_| self.damaged.store(true, Ordering::Release)).map_err(SaveError::Flush)?;
            at += PIECE;
        }
        Ok(())
    }

    /// Makes holes in `into`, a clone, where the RAM holds long zeros, as far as it is in the page cache: what is not has not
    /// been written since it was loaded, and was looked at then.
    #[tracing::instrument(name = "machine.punch_zeros", skip_all)]
    fn punch_zeros<H>(
        &self,
        into: &File,
        hold: &(impl Fn() -> Result<H, SaveError> + Sync),
    ) -> Result<u64, SaveError> {
        let mut buffer = vec![0; PIECE_READ];
        let (mut at, mut data_until, mut hole_bytes) = (0, 0, 0);
        while at < self.bytes {
            let _held = hold()?;
            if at >= data_until {
                let Some((start, end)) = next_data(into, at).map_err(SaveError::Write)? else { break };
                (at, data_until) = (start, end.min(self.bytes));
            }
            let most = buffer.len().min((data_until - at) as usize);
            let read = match read_cached(&self.file, at, &mut buffer[..most]).map_err(SaveError::Read)? {
                // Not in the page cache.
                0 => {
                    at = (at + 1).next_multiple_of(LEAST_HOLE as u64);
                    continue;
                }
                read => read,
            };
            for (start, end, is_zero) in stretches(&buffer[..read]) {
                if is_zero {
                    let (from, len) = (at + start as u64, (end - start) as u64);
                    fallocate(into, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, len)
                        .map_err(|error| SaveError::Write(error.into()))?;
                    hole_bytes += len;
                }
            }
            at += read as u64;
        }
        Ok(hole_bytes)
    }

    fn check_len(&self, file: &File) -> io::Result<()> {
        let (found, wanted) = (file.metadata()?.len(), self.bytes);
        if found != wanted {
            let why = format!("the memory file has {found} bytes, and the machine's memory {wanted}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(())
    }
}

/// Reads what of a range is in the page cache, up to the first page that is not.
fn read_cached(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    match preadv2(file, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(read),
        // Or the file system cannot tell.
        Err(Errno::AGAIN | Errno::OPNOTSUPP) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Where the next data at or after `from` start and end.
fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const LONG: usize = 4 * LEAST_HOLE;

    fn ram_of(bytes: &[u8]) -> RamFile {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        RamFile { file, bytes: bytes.len() as u64, damaged: AtomicBool::new(false) }
    }

    #[test]
    fn long_zeros_become_holes_and_nothing_else_changes() {
        let mut bytes = vec![7; LONG];
        bytes.resize(2 * LONG, 0);
        bytes.extend(vec![9; LONG]);
        bytes.extend(vec![0; LEAST_HOLE / 2]);
        bytes.extend(vec![1; LEAST_HOLE / 2]);
        let ram = ram_of(&bytes);
        let clone = tempfile::tempfile().unwrap();
        clone.write_all_at(&bytes, 0).unwrap();
        let holes = ram.punch_zeros(&clone, &|| Ok(())).unwrap();
        let mut read = vec![3; bytes.len()];
        clone.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
        // A file system that does not tell what is cached makes no holes.
        assert!(holes == LONG as u64 || holes == 0, "{holes}");
        assert!(matches!(
            ram.punch_zeros(&clone, &|| Err::<(), _>(SaveError::Cancelled)),
            Err(SaveError::Cancelled)
        ));
    }

    #[test]
    fn a_ram_file_of_another_size_is_not_saved() {
        let ram = RamFile { bytes: 1 << 20, ..ram_of(&[1; 4096]) };
        let error = ram.save(&tempfile::tempfile().unwrap(), false, &|| Ok(())).unwrap_err();
        assert!(error.to_string().contains("4096 bytes"), "{error}");
    }

    #[test]
    fn what_could_not_be_written_once_is_never_saved() {
        let ram = RamFile { damaged: AtomicBool::new(true), ..ram_of(&[1; 4096]) };
        let refused = ram.save(&tempfile::tempfile().unwrap(), false, &|| Ok(()));
        assert!(matches!(refused, Err(SaveError::Damaged)), "{refused:?}");
    }

    #[test]
    fn flushing_ends_when_nobody_wants_it_any_more() {
        let ram = ram_of(&vec![1; 3 * PIECE as usize]);
        ram.flush(&|| Ok(())).unwrap();
        assert!(matches!(ram.flush(&|| Err::<(), _>(SaveError::Cancelled)), Err(SaveError::Cancelled)));
    }
}

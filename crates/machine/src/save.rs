//! Saving the private memory a stopped machine has dirtied, into a clone of the memory file it was loaded from.
//!
//! The dirtied pages are the anonymous pages of guest RAM in the machine's process. They are cut into pieces, which a
//! few threads copy; pieces of zeros become holes, so that memory the guest freed takes no room.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use torpor_sys::PageRun;
use torpor_types::GUEST_PAGE_BYTES;

use crate::error::SaveError;
use crate::vmm::GuestRam;

/// Most bytes copied at once.
const PIECE: u64 = 1 << 20;
/// Zeros shorter than that are written: every hole splits the file into one more extent, which makes each later clone
/// of it slower.
pub(crate) const LEAST_HOLE: usize = 16 * PAGE;
const PAGE: usize = GUEST_PAGE_BYTES as usize;
/// More threads than that do not make a disk faster.
const MAX_THREADS: usize = 4;

/// Most memory looked through at once for dirtied pages.
const LOOKED_THROUGH: u64 = 64 << 20;

/// Is told what a save writes into its file, by several threads: in pieces that end where a mebibyte does.
pub trait SaveObserver: Sync {
    /// `content` is at `offset` now.
    fn wrote(&self, offset: u64, content: &[u8]);
    /// A range is a hole now.
    fn punched(&self, offset: u64, len: u64);
}

/// Nobody.
impl SaveObserver for () {
    fn wrote(&self, _offset: u64, _content: &[u8]) {}
    fn punched(&self, _offset: u64, _len: u64) {}
}

/// Where a save writes.
#[derive(Clone, Copy)]
pub struct SaveTarget<'a> {
    /// The file.
    pub file: &'a File,
    /// Who is told.
    pub observer: &'a dyn SaveObserver,
}

impl<'a> From<&'a File> for SaveTarget<'a> {
    /// Nobody is told.
    fn from(file: &'a File) -> Self {
        Self { file, observer: &() }
    }
}

/// Rounds of copying ahead, at most, and how many bytes written meanwhile are little: copied in a few milliseconds.
const MOST_ROUNDS: usize = 6;
const LITTLE: u64 = 4 << 20;

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SavedMemory {
    /// Pages the guest has dirtied since its memory was mapped.
    pub pages: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes that were zeros and became holes.
    pub hole_bytes: u64,
}

/// Copies the dirtied pages of process `pid` into `into`, which has to hold the memory it was loaded from; if some were
/// copied into it ahead, those that were written since.
///
/// The process stands still as long as what `hold` gives is held, which is asked for again and again, and never while something is
/// written: whoever wants the process to go on waits for a read, and not for a disk.
pub(crate) fn save<H>(
    pid: u32,
    ram: GuestRam,
    into: SaveTarget<'_>,
    ahead: bool,
    hold: &(impl Fn() -> Result<H, SaveError> + Sync),
) -> Result<SavedMemory, SaveError> {
    let find = || {
        let mut runs = Vec::new();
        for offset in (0..ram.len).step_by(LOOKED_THROUGH as usize) {
            let _held = hold()?;
            let (address, len) = (ram.address + offset, LOOKED_THROUGH.min(ram.len - offset));
            let found = match ahead {
                true => torpor_sys::written_pages(pid, address, len, false),
                false => torpor_sys::anonymous_pages(pid, address, len),
            };
            let found = found.map_err(SaveError::Read)?;
            runs.extend(found.into_iter().map(|run| PageRun { offset: offset + run.offset, ..run }));
        }
        Ok(runs)
    };
    let runs = tracing::info_span!("machine.find_dirty").in_scope(find)?;
    // The last pages of a live copy are for a guest that waits to go on: the disk can wait.
    let mut saved = copy(pid, ram, &runs, into, !ahead, hold)?;
    saved.hole_bytes +=
        tracing::info_span!("machine.punch_free").in_scope(|| punch_free(pid, ram, into, hold))?;
    Ok(saved)
}

/// Makes holes of what the guest gave back and has not written to since; says how many bytes. The preloaded library maps such
/// memory anew, without a file.
fn punch_free<H>(
    pid: u32,
    ram: GuestRam,
    into: SaveTarget<'_>,
    hold: &impl Fn() -> Result<H, SaveError>,
) -> Result<u64, SaveError> {
    let held = hold()?;
    let given_back = torpor_sys::anonymous_mappings(pid, ram.address, ram.len).map_err(SaveError::Read)?;
    let mut free = Vec::new();
    for range in given_back {
        let written = torpor_sys::anonymous_pages(pid, ram.address + range.offset, range.len);
        free.extend(gaps(range, &written.map_err(SaveError::Read)?));
    }
    drop(held);
    for PageRun { offset, len } in &free {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(into.file, flags, *offset, *len).map_err(|errno| SaveError::Write(errno.into()))?;
        into.observer.punched(*offset, *len);
    }
    Ok(free.iter().map(|run| run.len).sum())
}

/// What of a range is in none of `runs`, which count from the start of the range.
fn gaps(range: PageRun, runs: &[PageRun]) -> Vec<PageRun> {
    let starts = std::iter::once(0).chain(runs.iter().map(|run| run.offset + run.len));
    let ends = runs.iter().map(|run| run.offset).chain(std::iter::once(range.len));
    let gap = |(start, end): (u64, u64)| {
        (start < end).then(|| PageRun { offset: range.offset + start, len: end - start })
    };
    starts.zip(ends).filter_map(gap).collect()
}

/// Copies the dirtied pages of a process that runs and whose memory is tracked, again and again, until little is left
/// that was written meanwhile. What was copied here is nothing whole: [`save`] of the stopped process makes it so.
pub(crate) fn copy_ahead(pid: u32, ram: GuestRam, into: SaveTarget<'_>) -> Result<SavedMemory, SaveError> {
    let mut all = SavedMemory::default();
    let mut before = u64::MAX;
    for round in 0..MOST_ROUNDS {
        let found = match round {
            0 => torpor_sys::protect_anonymous_pages(pid, ram.address, ram.len),
            _ => torpor_sys::written_pages(pid, ram.address, ram.len, true),
        };
        let copied = copy(pid, ram, &found.map_err(SaveError::Read)?, into, true, &|| Ok(()))?;
        all = SavedMemory {
            pages: all.pages + copied.pages,
            bytes: all.bytes + copied.bytes,
            hole_bytes: all.hole_bytes + copied.hole_bytes,
        };
        // A guest that writes as fast as it is copied will not be caught up with.
        let bytes = copied.pages * GUEST_PAGE_BYTES;
        if bytes <= LITTLE || bytes > before / 2 {
            break;
        }
        before = bytes;
    }
    Ok(all)
}

/// Copies pages. With `to_disk` the disk begins with each piece while the next ones are copied.
fn copy<H>(
    pid: u32,
    ram: GuestRam,
    runs: &[PageRun],
    into: SaveTarget<'_>,
    to_disk: bool,
    hold: &(impl Fn() -> Result<H, SaveError> + Sync),
) -> Result<SavedMemory, SaveError> {
    let pages = runs.iter().map(|run| run.len / GUEST_PAGE_BYTES).sum();
    let pieces: Vec<PageRun> = runs.iter().flat_map(|run| pieces(*run)).collect();
    let (written, holes) = (AtomicU64::new(0), AtomicU64::new(0));
    let next = AtomicUsize::new(0);
    let copy = || -> Result<(), SaveError> {
        let mut buffer = vec![0; PIECE as usize];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let buffer = &mut buffer[..piece.len as usize];
            let held = hold()?;
            torpor_sys::read_process_memory(pid, ram.address + piece.offset, buffer)
                .map_err(SaveError::Read)?;
            drop(held);
            let hole_bytes = write(into.file, piece.offset, buffer).map_err(SaveError::Write)?;
            into.observer.wrote(piece.offset, buffer);
            if to_disk {
                torpor_sys::start_write_back_of(into.file, piece.offset, piece.len)
                    .map_err(SaveError::Write)?;
            }
            holes.fetch_add(hole_bytes, Ordering::Relaxed);
            written.fetch_add(piece.len - hole_bytes, Ordering::Relaxed);
        }
        Ok(())
    };
    tracing::info_span!("machine.copy_dirty", pages).in_scope(|| {
        // A small save is not worth a thread.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(MAX_THREADS).min(pieces.len() / 16);
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(copy)).collect();
            let own = copy();
            let panicked = |_| Err(SaveError::Read(io::Error::other("a copying thread panicked")));
            helpers.into_iter().map(|helper| helper.join().unwrap_or_else(panicked)).fold(own, Result::and)
        })
    })?;
    Ok(SavedMemory { pages, bytes: written.into_inner(), hole_bytes: holes.into_inner() })
}

fn pieces(run: PageRun) -> impl Iterator<Item = PageRun> {
    let end = run.offset + run.len;
    // Cut at multiples of the piece's size, so that what is cut twice is cut the same.
    let first = run.offset / PIECE;
    (first..end.div_ceil(PIECE)).map(move |i| {
        let offset = run.offset.max(i * PIECE);
        PageRun { offset, len: end.min((i + 1) * PIECE) - offset }
    })
}

/// Writes whole pages at `offset`, long zeros as holes; says how many bytes became holes.
fn write(into: &File, offset: u64, bytes: &[u8]) -> io::Result<u64> {
    let mut holes = 0;
    for (start, end, is_zero) in stretches(bytes) {
        let at = offset + start as u64;
        if is_zero {
            let len = (end - start) as u64;
            fallocate(into, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)?;
            holes += len;
        } else {
            into.write_all_at(&bytes[start..end], at)?;
        }
    }
    Ok(holes)
}

/// Cuts whole pages into stretches to write and stretches to punch: (start, end, all zeros).
pub(crate) fn stretches(bytes: &[u8]) -> Vec<(usize, usize, bool)> {
    let mut stretches: Vec<(usize, usize, bool)> = Vec::new();
    let mut push = |start: usize, end: usize, is_zero: bool| {
        // Short zeros are content.
        let is_zero = is_zero && end - start >= LEAST_HOLE;
        match stretches.last_mut() {
            Some(last) if last.2 == is_zero => last.1 = end,
            _ => stretches.push((start, end, is_zero)),
        }
    };
    let mut zeros_from = None;
    for (i, page) in bytes.chunks(PAGE).enumerate() {
        let at = i * PAGE;
        match (page.iter().all(|byte| *byte == 0), zeros_from) {
            (true, None) => zeros_from = Some(at),
            (true, Some(_)) => {}
            (false, from) => {
                if let Some(from) = from {
                    push(from, at, true);
                    zeros_from = None;
                }
                push(at, at + page.len(), false);
            }
        }
    }
    if let Some(from) = zeros_from {
        push(from, bytes.len(), true);
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_a_run_exactly(offset in 0_u64..4000, len in 1_u64..4000) {
            let run = PageRun { offset: offset * 4096, len: len * 4096 };
            let mut end = run.offset;
            for piece in pieces(run) {
                prop_assert_eq!(piece.offset, end);
                prop_assert!(piece.len > 0 && piece.len <= PIECE);
                end += piece.len;
            }
            prop_assert_eq!(end, run.offset + run.len);
        }

        #[test]
        fn a_file_written_in_stretches_holds_what_memory_held(
            lengths in proptest::collection::vec((0_usize..40, any::<bool>()), 1..12),
        ) {
            let mut bytes = Vec::new();
            for (pages, is_zero) in lengths {
                bytes.resize(bytes.len() + pages * PAGE, if is_zero { 0 } else { 7 });
            }
            let file = tempfile::tempfile().unwrap();
            // What was there before must not show through.
            file.write_all_at(&vec![9; bytes.len()], 0).unwrap();
            let holes = write(&file, 0, &bytes).unwrap();
            let mut read = vec![1; bytes.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            prop_assert!(read == bytes);
            prop_assert!(holes <= bytes.iter().filter(|byte| **byte == 0).count() as u64);
        }
    }

    #[test]
    fn what_was_given_back_and_not_written_since_is_a_gap() {
        let run = |offset, len| PageRun { offset, len };
        let range = run(100, 50);
        assert_eq!(gaps(range, &[]), [range]);
        assert_eq!(gaps(range, &[run(0, 50)]), []);
        assert_eq!(gaps(range, &[run(0, 10), run(20, 10)]), [run(110, 10), run(130, 20)]);
        assert_eq!(gaps(range, &[run(10, 40)]), [run(100, 10)]);
    }

    #[test]
    fn a_save_that_is_cancelled_says_so() {
        let held = vec![5_u8; 64 * PAGE];
        // Whole pages inside of it, which are anonymous memory of ours.
        let address = (held.as_ptr() as u64).next_multiple_of(GUEST_PAGE_BYTES);
        let ram = GuestRam { address, len: 32 * GUEST_PAGE_BYTES };
        let file = tempfile::tempfile().unwrap();
        let into = SaveTarget::from(&file);
        let cancelled = save(std::process::id(), ram, into, false, &|| Err::<(), _>(SaveError::Cancelled));
        assert!(matches!(cancelled, Err(SaveError::Cancelled)), "{cancelled:?}");
        let saved = save(std::process::id(), ram, into, false, &|| Ok(())).unwrap();
        assert_eq!(saved, SavedMemory { pages: 32, bytes: 32 * GUEST_PAGE_BYTES, hole_bytes: 0 });
    }
}

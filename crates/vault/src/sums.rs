//! Tables of hashes: one BLAKE3 hash per MiB of a memory or disk file.
//!
//! ```text
//!   0  8 bytes  "TORPSUMS"
//!   8  u16      major version: 1; another one is refused
//!  10  u16      minor version: 0; a newer one is read as if it were this
//!  12  u32      bytes in a chunk: 1048576
//!  16  u64      bytes in the file
//!  24  u64      0
//!  32  32 bytes hash of chunk 0
//!  64  32 bytes hash of chunk 1 …           numbers are little-endian
//! ```
//!
//! The last chunk ends with the file. A chunk that holds only zeros has the hash 0, whether it is a hole or was written. So empty
//! memory costs nothing to hash, and a table depends on a file's content alone.
//!
//! What is written to a staged file chunk by chunk can be hashed on the way ([`Written`]), which spares reading it again.
//! The table of a clone is derived from its parent's: chunks whose blocks are still shared ([`torpor_sys::extents`])
//! keep their hash, the others are read. Publishing a pause so costs what the sandbox changed, not what it has.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{SeekFrom, seek};

use torpor_sys::extents::{extents, same_chunks};

/// How much of a file one hash covers, in bytes.
pub const CHUNK_BYTES: u64 = 1 << 20;

const CHUNK_BYTES_U32: u32 = 1 << 20;
const CHUNK_BYTES_USIZE: usize = 1 << 20;
const MAGIC: &[u8; 8] = b"TORPSUMS";
const MAJOR: u16 = 1;
const MINOR: u16 = 0;
const HEADER_BYTES: usize = 32;

/// Threads that hash, at most, and how many chunks are worth one.
const MAX_THREADS: usize = 4;
const CHUNKS_FOR_A_THREAD: usize = 16;

/// Hash of one chunk.
pub(crate) type Sum = [u8; 32];

const ZEROS: Sum = [0; 32];
static ZERO_CHUNK: [u8; CHUNK_BYTES_USIZE] = [0; CHUNK_BYTES_USIZE];

/// The hashes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) file_bytes: u64,
    pub(crate) chunks: Vec<Sum>,
}

/// Hashes of what is written to a file, taken as it is written. Told by several threads.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<usize, Option<Sum>>>);

/// A table, and what it cost.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(crate) sums: Sums,
    pub(crate) bytes_read: u64,
}

/// A parent's file and its table.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) file: File,
    pub(crate) sums: Sums,
}

// === impl Written ===

impl Written {
    /// `content` was written at `offset`. What was known of the chunks that it is only a part of is forgotten.
    pub fn wrote(&self, offset: u64, content: &[u8]) {
        let is_chunk = offset.is_multiple_of(CHUNK_BYTES) && content.len() == CHUNK_BYTES_USIZE;
        // Not under the lock: this is what takes time.
        let sum = is_chunk.then(|| sum(content));
        self.set(offset, content.len() as u64, sum);
    }

    /// A range became a hole.
    pub fn punched(&self, offset: u64, len: u64) {
        self.set(offset, len, None);
    }

    fn set(&self, offset: u64, len: u64, sum: Option<Sum>) {
        let chunks = offset / CHUNK_BYTES..(offset + len).div_ceil(CHUNK_BYTES);
        // Where a file is longer than can be addressed nothing was written.
        self.known().extend(chunks.filter_map(|chunk| Some((usize::try_from(chunk).ok()?, sum))));
    }

    fn of(&self, chunk: usize) -> Option<Sum> {
        self.known().get(&chunk).copied().flatten()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<usize, Option<Sum>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Sums ===

impl Sums {
    /// Hashes all of a file, but for what was hashed when it was written.
    pub(crate) fn full(file: &File, written: &Written) -> io::Result<Computed> {
        Self::compute(file, |chunk| written.of(chunk), &mut |_| {})
    }

    /// Hashes what `file` does not share with its parent, and was not hashed when it was written. `file` has to be flushed,
    /// and nobody may write to either.
    pub(crate) fn derived(file: &File, parent: &Parent, written: &Written) -> io::Result<Computed> {
        let file_bytes = file.metadata()?.len();
        let known = &parent.sums;
        let same = same_chunks(&extents(file)?, &extents(&parent.file)?, CHUNK_BYTES, known.chunks.len());
        let shared = |chunk| {
            let sum: &Sum = known.chunks.get(chunk)?;
            let (start, end) = range(chunk, file_bytes);
            // The chunk has to end at the same byte in both files, too.
            (same[chunk] && (start, end) == range(chunk, known.file_bytes)).then_some(*sum)
        };
        Self::compute(file, |chunk| written.of(chunk).or_else(|| shared(chunk)), &mut |_| {})
    }

    /// Compares a file with the table: how many bytes were read or, as an error, where the first chunk that differs starts.
    /// `told` is given the number of bytes whenever some were read.
    pub(crate) fn check(
        &self,
        file: &File,
        told: &mut (dyn FnMut(u64) + Send),
    ) -> io::Result<Result<u64, u64>> {
        let now = Self::compute(file, |_| None, told)?;
        let differs = self.chunks.iter().zip(&now.sums.chunks).position(|(then, now)| then != now);
        Ok(match differs {
            Some(chunk) => Err(chunk as u64 * CHUNK_BYTES),
            None => Ok(now.bytes_read),
        })
    }

    fn compute(
        file: &File,
        known: impl Fn(usize) -> Option<Sum>,
        told: &mut (dyn FnMut(u64) + Send),
    ) -> io::Result<Computed> {
        let file_bytes = file.metadata()?.len();
        let count = chunk_count(file_bytes)?;
        let mut chunks = Vec::with_capacity(count);
        let mut to_read = Vec::new();
        // Up to here there is nothing but a hole.
        let mut hole_until = 0;
        for chunk in 0..count {
            let (start, end) = range(chunk, file_bytes);
            let sum = known(chunk);
            if sum.is_none() && start >= hole_until {
                hole_until = next_data(file, start, file_bytes)?;
            }
            if sum.is_none() && end > hole_until {
                hole_until = 0;
                to_read.push(chunk);
            }
            chunks.push(sum.unwrap_or(ZEROS));
        }
        let mut bytes_read = 0;
        for (chunk, sum) in hash(file, file_bytes, &to_read, told)? {
            let (start, end) = range(chunk, file_bytes);
            bytes_read += end - start;
            chunks[chunk] = sum;
        }
        Ok(Computed { sums: Self { file_bytes, chunks }, bytes_read })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.chunks.len() * 32);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&MAJOR.to_le_bytes());
        bytes.extend_from_slice(&MINOR.to_le_bytes());
        bytes.extend_from_slice(&CHUNK_BYTES_U32.to_le_bytes());
        bytes.extend_from_slice(&self.file_bytes.to_le_bytes());
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        bytes.extend(self.chunks.iter().flatten());
        bytes
    }

    /// Reads a table; the error says what is wrong with it.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let field = |at: usize, length: usize| bytes.get(at..at + length).ok_or("it is too short");
        let u16_at = |at| Ok::<_, &str>(u16::from_le_bytes([field(at, 2)?[0], field(at, 2)?[1]]));
        let u64_at = |at| {
            let mut number = [0; 8];
            number.copy_from_slice(field(at, 8)?);
            Ok::<_, &str>(u64::from_le_bytes(number))
        };
        if field(0, 8)? != MAGIC {
            return Err("it is no table of hashes".to_owned());
        }
        let (major, minor) = (u16_at(8)?, u16_at(10)?);
        if major != MAJOR {
            return Err(format!("it has version {major}.{minor}, understood is {MAJOR}.x: upgrade Torpor"));
        }
        if field(12, 4)? != CHUNK_BYTES_U32.to_le_bytes() {
            return Err("its chunks have an unknown size".to_owned());
        }
        let file_bytes = u64_at(16)?;
        let body = bytes.get(HEADER_BYTES..).ok_or("it is too short")?;
        let (chunks, rest) = body.as_chunks::<32>();
        if !rest.is_empty() || chunk_count(file_bytes).ok() != Some(chunks.len()) {
            return Err(format!("it has {} bytes of hashes for a file of {file_bytes} bytes", body.len()));
        }
        Ok(Self { file_bytes, chunks: chunks.to_vec() })
    }
}

/// Reads and hashes chunks of a file, on all processors if there are many.
fn hash(
    file: &File,
    file_bytes: u64,
    to_read: &[usize],
    told: &mut (dyn FnMut(u64) + Send),
) -> io::Result<Vec<(usize, Sum)>> {
    let (next, told) = (AtomicUsize::new(0), Mutex::new(told));
    let work = || -> io::Result<Vec<(usize, Sum)>> {
        let mut buffer = vec![0; CHUNK_BYTES_USIZE];
        let mut sums = Vec::new();
        while let Some(chunk) = to_read.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (start, end) = range(*chunk, file_bytes);
            // A chunk is at most CHUNK_BYTES long.
            let content = &mut buffer[..(end - start) as usize];
            file.read_exact_at(content, start)?;
            sums.push((*chunk, sum(content)));
            told.lock().unwrap_or_else(PoisonError::into_inner)(end - start);
        }
        Ok(sums)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(MAX_THREADS).min(to_read.len().div_ceil(CHUNKS_FOR_A_THREAD));
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work()?;
        for helper in helpers {
            all.extend(helper.join().map_err(|_| io::Error::other("a hashing thread panicked"))??);
        }
        Ok(all)
    })
}

fn sum(content: &[u8]) -> Sum {
    if content == &ZERO_CHUNK[..content.len()] { ZEROS } else { *blake3::hash(content).as_bytes() }
}

fn chunk_count(file_bytes: u64) -> io::Result<usize> {
    usize::try_from(file_bytes.div_ceil(CHUNK_BYTES)).map_err(io::Error::other)
}

/// First byte of a chunk, and the one after its last.
fn range(chunk: usize, file_bytes: u64) -> (u64, u64) {
    let start = chunk as u64 * CHUNK_BYTES;
    (start, (start + CHUNK_BYTES).min(file_bytes))
}

/// Where the next data at or after `from` are; the file's end if there are none.
fn next_data(file: &File, from: u64, file_bytes: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(at),
        Err(rustix::io::Errno::NXIO) => Ok(file_bytes),
        // A file system that knows no holes.
        Err(rustix::io::Errno::INVAL) => Ok(from),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_is_read_back_as_it_was_written_and_a_damaged_one_is_refused() {
        let sums = Sums { file_bytes: 2 * CHUNK_BYTES + 1, chunks: vec![[1; 32], ZEROS, [3; 32]] };
        let bytes = sums.to_bytes();
        assert_eq!(Sums::from_bytes(&bytes), Ok(sums));
        for cut in 0..bytes.len() {
            assert!(Sums::from_bytes(&bytes[..cut]).is_err(), "{cut}");
        }
        let mut newer = bytes.clone();
        newer[10] = 9;
        assert!(Sums::from_bytes(&newer).is_ok());
        newer[8] = 2;
        assert!(Sums::from_bytes(&newer).unwrap_err().contains("version 2.9"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_hole_and_written_zeros_have_the_same_table(
            file_bytes in 0_u64..5 * CHUNK_BYTES,
            writes in proptest::collection::vec((0_u64..5 * CHUNK_BYTES, 1_usize..10_000, any::<u8>()), 0..5),
        ) {
            let (holes, zeros) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            zeros.write_all_at(&vec![0; file_bytes as usize], 0).unwrap();
            for (at, length, byte) in writes {
                for file in [&holes, &zeros] {
                    file.write_all_at(&vec![byte; length], at).unwrap();
                }
            }
            for file in [&holes, &zeros] {
                file.set_len(file_bytes).unwrap();
            }
            let table = Sums::full(&holes, &Written::default()).unwrap().sums;
            prop_assert_eq!(&table, &Sums::full(&zeros, &Written::default()).unwrap().sums);
            let checked = table.check(&holes, &mut |_| {}).unwrap();
            prop_assert!(checked.is_ok());
        }

        #[test]
        fn one_changed_byte_is_found_in_its_chunk(at in 0_u64..3 * CHUNK_BYTES) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(3 * CHUNK_BYTES).unwrap();
            let table = Sums::full(&file, &Written::default()).unwrap();
            prop_assert_eq!(table.bytes_read, 0);
            file.write_all_at(&[1], at).unwrap();
            let checked = table.sums.check(&file, &mut |_| {}).unwrap();
            prop_assert_eq!(checked, Err(at / CHUNK_BYTES * CHUNK_BYTES));
        }

        #[test]
        fn what_was_hashed_on_the_way_is_what_the_file_holds(
            writes in proptest::collection::vec((0_u64..64, 1_u64..40, 0_u8..3), 0..12),
        ) {
            const BLOCK: u64 = CHUNK_BYTES / 16;
            let (file, written) = (tempfile::tempfile().unwrap(), Written::default());
            file.set_len(8 * CHUNK_BYTES).unwrap();
            for (block, blocks, byte) in writes {
                // Cut at chunks, as the pieces of a save are.
                let (mut at, end) = (block * BLOCK, (block + blocks) * BLOCK);
                while at < end {
                    let piece = ((at / CHUNK_BYTES + 1) * CHUNK_BYTES).min(end) - at;
                    let content = vec![byte; piece as usize];
                    file.write_all_at(&content, at).unwrap();
                    match byte {
                        0 => written.punched(at, piece),
                        _ => written.wrote(at, &content),
                    }
                    at += piece;
                }
            }
            let on_the_way = Sums::full(&file, &written).unwrap();
            prop_assert_eq!(on_the_way.sums, Sums::full(&file, &Written::default()).unwrap().sums);
        }
    }
}

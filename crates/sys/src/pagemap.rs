//! Which pages of a private file mapping a process has made its own.
//!
//! A page of a private mapping is *anonymous* once the process wrote to it: it left the file and belongs to the
//! process alone, in memory or in swap. Those pages are what a stopped machine has to save. Linux 6.7 and later find
//! them in one call (`PAGEMAP_SCAN`); before, one 8-byte entry for each page of `/proc/PID/pagemap` has to be read.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes in a page of the host. (x86-64; other hosts have to run with 4 KiB pages.)
const PAGE: u64 = 4096;

/// A run of neighbouring pages, in bytes from the start of the range that was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// Bytes from the start of the range; a multiple of the page size.
    pub offset: u64,
    /// Bytes; a multiple of the page size.
    pub len: u64,
}

/// Which of the anonymous pages are asked for, and what is done with them.
#[derive(Debug, Clone, Copy, Default)]
struct Query {
    /// Only those written since they were protected, and those that never were.
    written: bool,
    /// Protect each against writing, until its next write.
    protect: bool,
}

/// The anonymous pages of a process whose memory is *tracked* (userfaultfd(2), `UFFD_FEATURE_WP_ASYNC`), protected from
/// now on: [`written_pages`] tells which are written after this. May be asked while the process runs.
pub fn protect_anonymous_pages(pid: u32, address: u64, len: u64) -> io::Result<Vec<PageRun>> {
    scan(&open(pid, address, len)?, address, len, Query { protect: true, ..Query::default() })
}

/// The anonymous pages of a tracked process that were written since they were protected, or never were; with
/// `protect_again`, for the next time this is asked.
pub fn written_pages(pid: u32, address: u64, len: u64, protect_again: bool) -> io::Result<Vec<PageRun>> {
    let query = Query { written: true, protect: protect_again };
    scan(&open(pid, address, len)?, address, len, query)
}

/// The anonymous pages of process `pid` in `len` bytes from `address`, in order, neighbours merged.
///
/// Both have to be multiples of the page size. The process should be stopped or idle: pages it writes during the
/// scan may or may not be seen.
pub fn anonymous_pages(pid: u32, address: u64, len: u64) -> io::Result<Vec<PageRun>> {
    let pagemap = open(pid, address, len)?;
    match scan(&pagemap, address, len, Query::default()) {
        // ENOTTY: a kernel before 6.7.
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => read_entries(&pagemap, address, len),
        result => result,
    }
}

fn open(pid: u32, address: u64, len: u64) -> io::Result<File> {
    if !address.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "range is not made of whole pages"));
    }
    File::open(format!("/proc/{pid}/pagemap"))
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
/// Protect what is found; of a range that is not tracked, fail.
const PROTECT: u64 = 1 | 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

fn scan(pagemap: &File, address: u64, len: u64, query: Query) -> io::Result<Vec<PageRun>> {
    let mut runs = Runs::default();
    let mut regions = vec![Region::default(); 4096];
    let flags = if query.protect { PROTECT } else { 0 };
    let written = if query.written { PAGE_IS_WRITTEN } else { 0 };
    let mut start = address;
    let end = address + len;
    while start < end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            flags,
            start,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            // In memory or in swap, and not a page of the file.
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE | written,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_FILE,
            ..ScanArguments::default()
        };
        // SAFETY: `arguments` has the layout and the size the kernel expects, and its `vec` and `vec_len` are those
        // of `regions`, which is not touched otherwise during the call.
        let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
        for region in regions.iter().take(found) {
            runs.push(region.start - address, region.end - region.start);
        }
        if arguments.walk_end <= start {
            return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
        }
        start = arguments.walk_end;
    }
    Ok(runs.0)
}

fn read_entries(pagemap: &File, address: u64, len: u64) -> io::Result<Vec<PageRun>> {
    const FILE_OR_SHARED: u64 = 1 << 61;
    const SWAPPED_OR_PRESENT: u64 = 0b11 << 62;
    let mut runs = Runs::default();
    let mut entries = vec![0_u8; 1 << 20];
    let pages = len / PAGE;
    let mut page = 0;
    while page < pages {
        let bytes = entries.len().min((pages - page) as usize * 8);
        let read = pagemap.read_at(&mut entries[..bytes], (address / PAGE + page) * 8)?;
        if read < 8 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for entry in entries[..read].chunks_exact(8) {
            let entry = entry.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
            if entry & SWAPPED_OR_PRESENT != 0 && entry & FILE_OR_SHARED == 0 {
                runs.push(page * PAGE, PAGE);
            }
            page += 1;
        }
    }
    Ok(runs.0)
}

/// Merges neighbours as they come.
#[derive(Default)]
struct Runs(Vec<PageRun>);

// === impl Runs ===

impl Runs {
    fn push(&mut self, offset: u64, len: u64) {
        match self.0.last_mut() {
            Some(last) if last.offset + last.len == offset => last.len += len,
            _ => self.0.push(PageRun { offset, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::mm::{MapFlags, ProtFlags};
    use std::collections::BTreeSet;
    use std::io::Write;

    const PAGES: usize = 512;

    /// A private mapping of a file of our own process, unmapped on drop.
    struct Mapping(*mut u8);

    impl Mapping {
        fn new(file: &File) -> Self {
            // SAFETY: a fresh mapping at an address of the kernel's choice.
            let address = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    PAGES * PAGE as usize,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                    file,
                    0,
                )
            };
            Self(address.unwrap().cast())
        }

        fn byte(&self, page: usize) -> *mut u8 {
            assert!(page < PAGES);
            // SAFETY: within the mapping.
            unsafe { self.0.add(page * PAGE as usize) }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: made by `new`, used by nobody else.
            unsafe { rustix::mm::munmap(self.0.cast(), PAGES * PAGE as usize) }.unwrap();
        }
    }

    fn pages(runs: &[PageRun]) -> BTreeSet<usize> {
        runs.iter()
            .flat_map(|run| (run.offset / PAGE) as usize..((run.offset + run.len) / PAGE) as usize)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn exactly_the_pages_written_to_are_found_whatever_was_read(
            written in proptest::collection::btree_set(0..PAGES, 0..200),
            read in proptest::collection::btree_set(0..PAGES, 0..200),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![7; PAGES * PAGE as usize]).unwrap();
            let mapping = Mapping::new(&file);
            for page in read {
                // SAFETY: inside the mapping, whose file is long enough.
                prop_assert_eq!(unsafe { mapping.byte(page).read_volatile() }, 7);
            }
            for page in &written {
                // SAFETY: inside the mapping, which is writable and ours.
                unsafe { mapping.byte(*page).write_volatile(1) };
            }
            let address = mapping.0 as u64;
            let len = PAGES as u64 * PAGE;
            let found = anonymous_pages(std::process::id(), address, len).unwrap();
            prop_assert_eq!(pages(&found), written);
            prop_assert!(found.windows(2).all(|pair| pair[0].offset + pair[0].len < pair[1].offset));
            let pagemap = File::open("/proc/self/pagemap").unwrap();
            prop_assert_eq!(read_entries(&pagemap, address, len).unwrap(), found);
        }
    }
}

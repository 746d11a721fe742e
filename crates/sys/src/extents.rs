//! Where two files hold the same blocks of a file system that can clone.
//!
//! A clone shares its blocks with the file it was made from until one of them is written to. So what two files have in common
//! is known without reading either: they hold the same where the same blocks are theirs. (The other way round it does not follow.)

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use crate::PageRun;

/// Which blocks of its file system a file consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    device: u64,
    /// In order; what is in none is a hole.
    extents: Vec<Extent>,
}

/// Bytes that lie in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    start: u64,
    len: u64,
    /// Where on the device; `None` if that says nothing of what is there.
    place: Option<u64>,
}

/// `struct fiemap` of `linux/fiemap.h`, with room for some of what it ends with.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; AT_ONCE],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const AT_ONCE: usize = 1024;
/// `_IOWR('f', 11, struct fiemap)`
const FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
const LAST: u32 = 1;
/// Unknown, delayed, encoded, encrypted, not aligned, inline, tail: the place says nothing, or not all.
const NO_PLACE: u32 = 0x02 | 0x04 | 0x08 | 0x80 | 0x100 | 0x200 | 0x400;

// === impl Blocks ===

impl Blocks {
    /// Looks where `file` lies (`ioctl_fiemap`). What was written to it has to be flushed, and has to stay as it is: blocks that a
    /// clone is about to get in place of shared ones are not told of before.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (device, len) = (metadata.dev(), metadata.len());
        let mut extents = Vec::new();
        let mut start = 0;
        let mut request = Box::new(Request {
            start,
            length: 0,
            flags: 0,
            mapped_extents: 0,
            extent_count: AT_ONCE as u32,
            reserved: 0,
            extents: [RawExtent::default(); AT_ONCE],
        });
        while start < len {
            (request.start, request.length, request.mapped_extents) = (start, len - start, 0);
            // SAFETY: `request` has the layout the call expects, with room for as many extents as it says.
            if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut *request) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let found = &request.extents[..(request.mapped_extents as usize).min(AT_ONCE)];
            extents.extend(found.iter().map(|raw| Extent {
                start: raw.logical,
                len: raw.length,
                place: (raw.flags & NO_PLACE == 0).then_some(raw.physical),
            }));
            match found.last() {
                Some(last) if last.flags & LAST == 0 && last.logical + last.length > start => {
                    start = last.logical + last.length;
                }
                _ => break,
            }
        }
        Ok(Self { device, extents })
    }

    /// What of this file the other one may not hold in the same place: wherever this one is no hole, unless both have the same
    /// block there. In order, neighbours merged.
    pub fn missing_in(&self, other: &Self) -> Vec<PageRun> {
        let is_elsewhere = self.device != other.device;
        let mut runs: Vec<PageRun> = Vec::new();
        let mut theirs = other.extents.as_slice();
        for ours in &self.extents {
            let (mut at, end) = (ours.start, ours.start + ours.len);
            while at < end {
                while let [first, rest @ ..] = theirs
                    && first.start + first.len <= at
                {
                    theirs = rest;
                }
                let (place, same_until) = match theirs.first() {
                    Some(next) if next.start <= at => (next.place_of(at), next.start + next.len),
                    Some(next) => (None, next.start),
                    None => (None, end),
                };
                let until = same_until.min(end);
                if is_elsewhere || place.is_none() || place != ours.place_of(at) {
                    match runs.last_mut() {
                        Some(last) if last.offset + last.len == at => last.len += until - at,
                        _ => runs.push(PageRun { offset: at, len: until - at }),
                    }
                }
                at = until;
            }
        }
        runs
    }
}

// === impl Extent ===

impl Extent {
    /// Where the byte of the file at `at` is.
    fn place_of(&self, at: u64) -> Option<u64> {
        self.place.map(|place| place + (at - self.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 64;

    /// A file of some pages: each in its block, in a hole, or who knows where.
    fn blocks(places: &[Option<Option<u64>>]) -> Blocks {
        let extents = places.iter().enumerate().filter_map(|(page, place)| {
            let place = (*place)?;
            Some(Extent { start: page as u64 * PAGE, len: PAGE, place: place.map(|block| block * PAGE) })
        });
        Blocks { device: 1, extents: extents.collect() }
    }

    /// The same, with extents that follow each other on the device in one.
    fn merged(mut blocks: Blocks) -> Blocks {
        let mut extents: Vec<Extent> = Vec::new();
        for next in blocks.extents {
            match extents.last_mut() {
                Some(last)
                    if last.start + last.len == next.start
                        && last.place.is_some()
                        && last.place.map(|place| place + last.len) == next.place =>
                {
                    last.len += next.len;
                }
                _ => extents.push(next),
            }
        }
        blocks.extents = extents;
        blocks
    }

    fn places() -> impl Strategy<Value = Vec<Option<Option<u64>>>> {
        let place = prop_oneof![
            1 => Just(None),
            1 => Just(Some(None)),
            6 => (0..4_u64).prop_map(|more| Some(Some(more))),
        ];
        // Mostly in a row, so that there are long extents.
        proptest::collection::vec(place, PAGES as usize).prop_map(|places| {
            let at = |(page, place): (usize, Option<Option<u64>>)| {
                place.map(|place| place.map(|more| page as u64 + more / 3 * 100))
            };
            places.into_iter().enumerate().map(at).collect()
        })
    }

    proptest! {
        #[test]
        fn exactly_the_pages_that_are_not_in_the_same_block_are_missing(one in places(), two in places()) {
            let missing = merged(blocks(&one)).missing_in(&merged(blocks(&two)));
            let found: Vec<u64> =
                missing.iter().flat_map(|run| run.offset / PAGE..(run.offset + run.len) / PAGE).collect();
            let expected: Vec<u64> = (0..PAGES)
                .filter(|page| {
                    let (one, two) = (one[*page as usize], two[*page as usize]);
                    one.is_some() && (one != two || one == Some(None))
                })
                .collect();
            prop_assert_eq!(found, expected);
            prop_assert!(missing.windows(2).all(|pair| pair[0].offset + pair[0].len < pair[1].offset));
        }
    }

    #[test]
    fn files_of_two_file_systems_have_nothing_in_common() {
        let one = blocks(&vec![Some(Some(1)); PAGES as usize]);
        assert_eq!(one.missing_in(&one), []);
        let elsewhere = Blocks { device: 2, ..one.clone() };
        assert_eq!(one.missing_in(&elsewhere), [PageRun { offset: 0, len: PAGES * PAGE }]);
    }

    #[test]
    fn what_is_written_to_a_clone_is_missing_in_it_and_all_else_is_shared() {
        // Where no file system clones, the machines' tests show the same.
        let Some(dir) = std::env::var_os("TORPOR_TEST_DATA_DIR") else { return };
        let dir = tempfile::tempdir_in(std::path::Path::new(&dir).join("vault")).unwrap();
        let file = |name| File::create_new(dir.path().join(name)).unwrap();
        let (one, two) = (file("one"), file("two"));
        one.write_all_at(&vec![7; (PAGES * PAGE) as usize], 0).unwrap();
        one.set_len(2 * PAGES * PAGE).unwrap();
        one.sync_all().unwrap();
        rustix::fs::ioctl_ficlone(&two, &one).unwrap();
        two.write_all_at(&[8; PAGE as usize], 5 * PAGE).unwrap();
        two.write_all_at(&[8; PAGE as usize], (PAGES + 5) * PAGE).unwrap();
        two.sync_all().unwrap();
        let missing = Blocks::of(&one).unwrap().missing_in(&Blocks::of(&two).unwrap());
        assert_eq!(missing, [PageRun { offset: 5 * PAGE, len: PAGE }]);
    }
}

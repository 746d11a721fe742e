//! Where the file system keeps a file's bytes, and so: what two files share.
//!
//! Cloned files share their blocks until one is written to; the writer then gets new blocks. So where two files
//! map a range to the same place on the device, they hold the same bytes there, and where they do not, they may differ. (XFS shows a block's new
//! place only once it has been written back: flush a file before looking.) Both have to be on one file system.

use std::fs::File;
use std::io;

use fiemap::{Fiemap, FiemapExtentFlags};

use crate::PageRun;

/// A piece of a file that is in one piece on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file it starts.
    pub logical: u64,
    /// Where on the device.
    pub physical: u64,
    /// How long it is.
    pub bytes: u64,
    /// Allocated but never written: reads as zeros.
    pub unwritten: bool,
    /// The place is not known, or does not determine the content (compressed, inline, encrypted).
    pub opaque: bool,
}

/// The extents of a flushed file, in order; neighbours that continue each other are one.
pub fn extents(file: &File) -> io::Result<Vec<Extent>> {
    let opaque = FiemapExtentFlags::UNKNOWN
        | FiemapExtentFlags::DELALLOC
        | FiemapExtentFlags::ENCODED
        | FiemapExtentFlags::DATA_ENCRYPTED
        | FiemapExtentFlags::NOT_ALIGNED
        | FiemapExtentFlags::DATA_INLINE
        | FiemapExtentFlags::DATA_TAIL;
    let mut all = Vec::new();
    for extent in Fiemap::new(file) {
        let extent = extent?;
        push(
            &mut all,
            Extent {
                logical: extent.fe_logical,
                physical: extent.fe_physical,
                bytes: extent.fe_length,
                unwritten: extent.fe_flags.contains(FiemapExtentFlags::UNWRITTEN),
                opaque: extent.fe_flags.intersects(opaque),
            },
        );
    }
    Ok(all)
}

/// Bytes that the file occupies and shares with no other: what its removal frees.
pub fn own_bytes(file: &File) -> io::Result<u64> {
    Fiemap::new(file).try_fold(0, |bytes, extent| {
        let extent = extent?;
        let is_shared = extent.fe_flags.contains(FiemapExtentFlags::SHARED);
        Ok(if is_shared { bytes } else { bytes + extent.fe_length })
    })
}

/// For each of the first `count` chunks of `chunk_bytes`: whether both files surely hold the same bytes there.
pub fn same_chunks(one: &[Extent], other: &[Extent], chunk_bytes: u64, count: usize) -> Vec<bool> {
    let (mut one, mut other) = (Cursor(one), Cursor(other));
    (0_u64..)
        .map(|chunk| chunk * chunk_bytes)
        .take(count)
        .map(|start| {
            let end = start + chunk_bytes;
            let pieces = one.pieces(start, end);
            pieces.iter().all(|piece| !piece.opaque) && pieces == other.pieces(start, end)
        })
        .collect()
}

/// What of `one` may be something else in `other`: where `one` has content, and `other` has not surely the same. In order,
/// neighbours merged.
pub fn missing(one: &[Extent], other: &[Extent]) -> Vec<PageRun> {
    let mut theirs = Cursor(other);
    let mut runs: Vec<PageRun> = Vec::new();
    let mut add = |start: u64, end: u64| match runs.last_mut() {
        _ if start == end => {}
        Some(last) if last.offset + last.len == start => last.len += end - start,
        _ => runs.push(PageRun { offset: start, len: end - start }),
    };
    for ours in one {
        let mut at = ours.logical;
        for piece in theirs.pieces(ours.logical, ours.logical + ours.bytes) {
            add(at, piece.logical);
            at = piece.logical + piece.bytes;
            let part = ours.clip(piece.logical, at);
            if part != piece || part.opaque {
                add(piece.logical, at);
            }
        }
        add(at, ours.logical + ours.bytes);
    }
    runs
}

fn push(all: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = all.last_mut()
        && last.logical + last.bytes == next.logical
        && last.physical + last.bytes == next.physical
        && (last.unwritten, last.opaque) == (next.unwritten, next.opaque)
    {
        last.bytes += next.bytes;
    } else {
        all.push(next);
    }
}

/// What has not been passed yet.
struct Cursor<'a>(&'a [Extent]);

impl Cursor<'_> {
    /// The parts of extents between `start` and `end`. Asked in ascending order.
    fn pieces(&mut self, start: u64, end: u64) -> Vec<Extent> {
        while let [first, rest @ ..] = self.0
            && first.logical + first.bytes <= start
        {
            self.0 = rest;
        }
        self.0
            .iter()
            .take_while(|extent| extent.logical < end)
            .map(|extent| extent.clip(start, end))
            .collect()
    }
}

impl Extent {
    fn clip(&self, start: u64, end: u64) -> Self {
        let logical = self.logical.max(start);
        let skipped = logical - self.logical;
        let bytes = (self.logical + self.bytes).min(end) - logical;
        Self { logical, physical: self.physical + skipped, bytes, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 64;

    fn extent(logical: u64, physical: u64, bytes: u64) -> Extent {
        Extent { logical, physical, bytes, unwritten: false, opaque: false }
    }

    #[test]
    fn what_continues_is_one_extent_however_it_was_reported() {
        let mut all = Vec::new();
        for part in [extent(0, 100, 4), extent(4, 104, 4), extent(8, 200, 4), extent(20, 212, 4)] {
            push(&mut all, part);
        }
        assert_eq!(all, [extent(0, 100, 8), extent(8, 200, 4), extent(20, 212, 4)]);
    }

    #[test]
    fn content_whose_place_is_not_known_is_never_called_the_same() {
        let opaque = [Extent { opaque: true, ..extent(0, 100, 8) }];
        assert_eq!(same_chunks(&opaque, &opaque, 4, 3), [false, false, true]);
        assert_eq!(missing(&opaque, &opaque), [PageRun { offset: 0, len: 8 }]);
    }

    proptest! {
        /// Against a model that maps every single byte.
        #[test]
        fn a_chunk_is_the_same_exactly_if_each_byte_has_the_same_place(
            base in proptest::collection::vec(proptest::option::of(0_u64..1000), 0..12),
            writes in proptest::collection::vec((0_usize..40, 1_usize..9, proptest::option::of(1000_u64..2000)), 0..6),
        ) {
            let one: Vec<Option<u64>> = base.iter().flat_map(|block| (0..4).map(move |i| block.map(|b| b * 16 + i))).collect();
            let mut other = one.clone();
            for (at, length, place) in writes {
                for (i, byte) in other.iter_mut().skip(at).take(length).enumerate() {
                    *byte = place.map(|place| place * 16 + i as u64);
                }
            }
            let map = |bytes: &[Option<u64>]| {
                let mut all = Vec::new();
                for (logical, place) in bytes.iter().enumerate() {
                    if let Some(place) = place {
                        push(&mut all, extent(logical as u64, *place, 1));
                    }
                }
                all
            };
            let count = one.len().div_ceil(5) + 1;
            let byte = |bytes: &[Option<u64>], i: usize| bytes.get(i).copied().flatten();
            let expected: Vec<bool> =
                (0..count).map(|c| (c * 5..c * 5 + 5).all(|i| byte(&one, i) == byte(&other, i))).collect();
            prop_assert_eq!(same_chunks(&map(&other), &map(&one), 5, count), expected);
            let missing = missing(&map(&one), &map(&other));
            let found: Vec<usize> =
                missing.iter().flat_map(|run| run.offset as usize..(run.offset + run.len) as usize).collect();
            let expected: Vec<usize> =
                (0..one.len()).filter(|i| one[*i].is_some() && one[*i] != byte(&other, *i)).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(missing.windows(2).all(|pair| pair[0].offset + pair[0].len < pair[1].offset));
        }
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
        let found = missing(&extents(&one).unwrap(), &extents(&two).unwrap());
        assert_eq!(found, [PageRun { offset: 5 * PAGE, len: PAGE }]);
    }
}

//! Byte ranges: which part of a file a request wants.
//!
//! One range per request is served. A request for several, or with a header that cannot be read, gets the whole
//! file, as RFC 9110 (14.2) allows; a range that lies wholly behind the file's end gets 416.

/// What to send of a file of known size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything, with status 200.
    Whole,
    /// `length` bytes from `start`, with status 206. `length` is at least 1.
    Range {
        /// The first byte's offset.
        start: u64,
        /// How many bytes.
        length: u64,
    },
    /// Nothing of it exists: status 416.
    Unsatisfiable,
}

/// The part of a file of `size` bytes that the header `Range: {header}` asks for.
pub(crate) fn part(header: Option<&str>, size: u64) -> Part {
    match header.and_then(parse) {
        None => Part::Whole,
        Some(Wanted::From { first, last }) => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            if first < end { Part::Range { start: first, length: end - first } } else { Part::Unsatisfiable }
        }
        Some(Wanted::Last(count)) => match count.min(size) {
            0 => Part::Unsatisfiable,
            length => Part::Range { start: size - length, length },
        },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    From { first: u64, last: Option<u64> },
    Last(u64),
}

fn parse(header: &str) -> Option<Wanted> {
    let (unit, ranges) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = ranges.trim().split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return Some(Wanted::Last(digits(last)?));
    }
    let first = digits(first)?;
    if last.is_empty() {
        return Some(Wanted::From { first, last: None });
    }
    let last = digits(last)?;
    (first <= last).then_some(Wanted::From { first, last: Some(last) })
}

/// A number written in digits alone: `str::parse` would also take a sign. Too large means the largest.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_names_its_first_and_last_byte() {
        assert_eq!(part(Some("bytes=0-0"), 10), Part::Range { start: 0, length: 1 });
        assert_eq!(part(Some("bytes=2-5"), 10), Part::Range { start: 2, length: 4 });
        assert_eq!(part(Some("bytes=5-"), 10), Part::Range { start: 5, length: 5 });
        assert_eq!(part(Some("bytes=5-99"), 10), Part::Range { start: 5, length: 5 });
        assert_eq!(part(Some("bytes=0-99999999999999999999999"), 10), Part::Range { start: 0, length: 10 });
    }

    #[test]
    fn a_suffix_range_counts_from_the_end() {
        assert_eq!(part(Some("bytes=-3"), 10), Part::Range { start: 7, length: 3 });
        assert_eq!(part(Some("bytes=-30"), 10), Part::Range { start: 0, length: 10 });
    }

    #[test]
    fn a_range_behind_the_end_is_unsatisfiable() {
        for (range, size) in
            [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)]
        {
            assert_eq!(part(Some(range), size), Part::Unsatisfiable, "{range} of {size}");
        }
    }

    #[test]
    fn what_is_not_one_range_of_bytes_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "lines=0-1",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=0-1,4-5",
            "bytes=+1-2",
        ] {
            assert_eq!(part(Some(header), 10), Part::Whole, "{header}");
        }
        assert_eq!(part(None, 10), Part::Whole);
    }

    proptest! {
        #[test]
        fn a_part_never_leaves_the_file(header in "bytes=[0-9]{0,4}-[0-9]{0,4}", size in 0_u64..5000) {
            if let Part::Range { start, length } = part(Some(&header), size) {
                prop_assert!(length > 0 && start + length <= size);
            }
        }

        #[test]
        fn a_well_formed_range_yields_exactly_the_named_bytes(size in 1_u64..10_000, a in 0_u64..10_000, b in 0_u64..10_000) {
            let (first, last) = (a.min(b), a.max(b));
            let expected: Vec<u64> = (first..=last).filter(|offset| *offset < size).collect();
            let got = match part(Some(&format!("bytes={first}-{last}")), size) {
                Part::Range { start, length } => (start..start + length).collect(),
                _ => Vec::new(),
            };
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn any_header_gets_an_answer(header in "\\PC{0,40}", size: u64) {
            let _ = part(Some(&header), size);
        }
    }
}

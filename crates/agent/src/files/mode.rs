//! How a file's mode is written in the protocol.
//!
//! Clients get the mode twice: as a number that holds only the nine permission bits, and as a string in the
//! notation of Go's `io/fs` package, which the protocol's first implementation used. That notation differs from
//! `ls`: it starts with one letter for each type or special bit that is set (a sticky directory is
//! `dtrwxrwxrwx`, a symbolic link `Lrwxrwxrwx`), or with `-` if there is none.

use rustix::fs::FileType;

/// The bits that `mode` may carry in the protocol.
const PERMISSION_BITS: u32 = 0o777;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// The nine permission bits of a raw `st_mode`.
pub(crate) fn permission_bits(raw_mode: u32) -> u32 {
    raw_mode & PERMISSION_BITS
}

/// A raw `st_mode` as text, for example `-rw-r--r--` or `drwxr-xr-x`.
pub(crate) fn permission_string(raw_mode: u32) -> String {
    let mut text = String::with_capacity(12);
    match FileType::from_raw_mode(raw_mode) {
        FileType::Directory => text.push('d'),
        FileType::Symlink => text.push('L'),
        FileType::BlockDevice => text.push('D'),
        FileType::CharacterDevice => text.push('D'),
        FileType::Fifo => text.push('p'),
        FileType::Socket => text.push('S'),
        FileType::RegularFile | FileType::Unknown => {}
    }
    for (bit, letter) in [(SET_UID, 'u'), (SET_GID, 'g')] {
        if raw_mode & bit != 0 {
            text.push(letter);
        }
    }
    if FileType::from_raw_mode(raw_mode) == FileType::CharacterDevice {
        text.push('c');
    }
    if raw_mode & STICKY != 0 {
        text.push('t');
    }
    if text.is_empty() {
        text.push('-');
    }
    for place in (0..9).rev() {
        let letter = ['x', 'w', 'r'][place % 3];
        text.push(if raw_mode & (1 << place) != 0 { letter } else { '-' });
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn modes_are_written_as_go_writes_them() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o041_777, "dtrwxrwxrwx"),
            (0o120_777, "Lrwxrwxrwx"),
            (0o104_755, "urwxr-xr-x"),
            (0o102_755, "grwxr-xr-x"),
            (0o020_666, "Dcrw-rw-rw-"),
            (0o060_660, "Drw-rw----"),
            (0o010_600, "prw-------"),
            (0o140_755, "Srwxr-xr-x"),
            (0o100_000, "----------"),
        ] {
            assert_eq!(permission_string(mode), text);
        }
    }

    proptest! {
        #[test]
        fn the_last_nine_letters_tell_the_permission_bits(mode in 0_u32..0o200_000) {
            let text = permission_string(mode);
            let tail = &text[text.len() - 9..];
            let bits = tail.chars().fold(0, |bits, letter| bits << 1 | u32::from(letter != '-'));
            prop_assert_eq!(bits, permission_bits(mode));
        }
    }
}

//! What machines print, kept short: a guest can write to its console for ever, and QEMU remarks on what guests do.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// QEMU's standard output and error.
pub(crate) const QEMU_LOG: &str = "qemu.log";
/// The guest's serial console.
pub(crate) const CONSOLE_LOG: &str = "console.log";
/// A log longer than that, in bytes, is cut to nothing.
const LIMIT: u64 = 1 << 20;
/// How much of the end of a log is shown, in bytes.
const TAIL: u64 = 64 << 10;
/// How much of QEMU's log an error message quotes.
const LAST_LINES: usize = 5;

/// A new log; every write goes to its end, so that it can be cut while it is in use.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

/// Cuts the logs of the machine in `dir` if they have grown too long.
pub(crate) fn cut(dir: &Path) {
    for name in [QEMU_LOG, CONSOLE_LOG] {
        let path = dir.join(name);
        if std::fs::metadata(&path).is_ok_and(|log| log.size() > LIMIT) {
            // A machine that is being destroyed has no logs any more.
            let _ = OpenOptions::new().write(true).open(&path).and_then(|log| log.set_len(0));
        }
    }
}

/// The end of a log as text, at most 64 KiB; empty if there is none.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut log = File::open(path)?;
        let len = log.metadata()?.len();
        log.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        log.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The last lines of a log in one line, for an error message.
pub(crate) fn last_words(path: &Path) -> String {
    let text = tail(path);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    last.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_is_cut_while_it_is_written_to_and_goes_on_from_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONSOLE_LOG);
        let mut log = create(&path).unwrap();
        log.write_all(&vec![b'x'; LIMIT as usize + 1]).unwrap();
        cut(dir.path());
        log.write_all(b"after").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after");
    }

    #[test]
    fn the_last_words_are_the_last_lines_that_say_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(QEMU_LOG);
        std::fs::write(&path, "1\n2\n3\n4\n\n5\n6\n\n").unwrap();
        assert_eq!(last_words(&path), "2 | 3 | 4 | 5 | 6");
        assert_eq!(last_words(&dir.path().join("none")), "");
    }
}

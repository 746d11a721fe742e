//! What a process prints, as log entries: one a line.

use std::{collections::BTreeMap, sync::Arc};

use torpor_envd_api::telemetry::LogLevel;

use super::Journal;

/// Bytes of a line that become one entry; a longer one becomes several.
const MAX_LINE_BYTES: usize = 4096;

/// Cuts one channel's output into lines and logs them. What comes too fast is left out as a whole and counted, which
/// costs nothing, rather than slowing the process down.
#[derive(Debug)]
pub(crate) struct Lines {
    journal: Arc<Journal>,
    level: LogLevel,
    fields: BTreeMap<String, String>,
    /// A line whose end has not come yet.
    begun: Vec<u8>,
    skipped_bytes: usize,
}

// === impl Lines ===

impl Lines {
    /// Logs with these fields.
    pub(crate) fn new(journal: Arc<Journal>, level: LogLevel, fields: BTreeMap<String, String>) -> Self {
        Self { journal, level, fields, begun: Vec::new(), skipped_bytes: 0 }
    }

    /// Takes the next piece of output.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        if !self.journal.afford(bytes.len()) {
            self.skipped_bytes += self.begun.len() + bytes.len();
            self.begun.clear();
            return;
        }
        self.tell_skipped();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.begin(&rest[..end]);
            self.end_line();
            rest = &rest[end + 1..];
        }
        self.begin(rest);
    }

    fn begin(&mut self, mut bytes: &[u8]) {
        while self.begun.len() + bytes.len() > MAX_LINE_BYTES {
            let (fits, rest) = bytes.split_at(MAX_LINE_BYTES - self.begun.len());
            self.begun.extend_from_slice(fits);
            self.end_line();
            bytes = rest;
        }
        self.begun.extend_from_slice(bytes);
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.begun);
        let line = line.trim_end_matches('\r');
        if !line.is_empty() {
            self.journal.write(self.level, "process", line, self.fields.clone());
        }
        self.begun.clear();
    }

    fn tell_skipped(&mut self) {
        if self.skipped_bytes > 0 {
            let message =
                format!("{} bytes of output were not logged: it was too much at once", self.skipped_bytes);
            self.journal.write(LogLevel::Warn, "agent", message, self.fields.clone());
            self.skipped_bytes = 0;
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.end_line();
        self.tell_skipped();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let journal = Arc::new(Journal::default());
        let mut lines = Lines::new(journal.clone(), LogLevel::Info, BTreeMap::new());
        for chunk in chunks {
            lines.take(chunk);
        }
        drop(lines);
        journal.after(0).into_iter().map(|entry| entry.message).collect()
    }

    #[test]
    fn lines_are_whole_however_they_were_cut() {
        assert_eq!(logged(&[b"on", b"e\ntwo\r\n\n", b"thr", b"ee"]), ["one", "two", "three"]);
        assert_eq!(logged(&["n\u{e4}".as_bytes()[..2].as_ref(), &"n\u{e4}".as_bytes()[2..]]), ["n\u{e4}"]);
        assert_eq!(logged(&[b"\xff\n"]), ["\u{fffd}"]);
    }

    #[test]
    fn a_line_without_end_does_not_grow_for_ever() {
        let long = vec![b'x'; MAX_LINE_BYTES * 2 + 1];
        let lengths: Vec<usize> = logged(&[&long]).iter().map(String::len).collect();
        assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES, 1]);
    }

    #[test]
    fn a_flood_is_left_out_and_counted() {
        let chunk = [b"0123456789abcde\n".as_slice(); 2048].concat();
        let chunks: Vec<&[u8]> = vec![&chunk; 64];
        let messages = logged(&chunks);
        let last = messages.last().unwrap();
        assert!(last.ends_with("bytes of output were not logged: it was too much at once"), "{last}");
    }
}

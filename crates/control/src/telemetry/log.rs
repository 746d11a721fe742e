//! A sandbox's log on disk: bounded, appended to, read as a whole.
//!
//! ```text
//!  <id>.ndjson        {"entry":{"boot_id":"b","seq":7,"at_us":…,"level":"info","logger":"process","message":"hi","fields":{…}}}
//!                     {"server":{…}}                               an entry of the server's own; it has no number
//!                     {"pause":{"boot_id":"b","seq":7}}            the sandbox was paused when entry 7 was the last
//!  <id>.old.ndjson    what was before, once the first is over 1 MiB; the third such goes
//! ```
//!
//! The last entry is the *cursor*: what the agent is asked to tell comes behind it. When a sandbox is set back to its last pause,
//! because its machine ended, its agent knows of nothing behind that; so the cursor is set back to the pause too. A pause
//! is noted at the head of a new file as well, so that it is found whatever was dropped.
//!
//! Times come from the guest, whose clock anybody may set in it. Each is brought between that of the entry before and now, so
//! that the log is in order and a cursor of time works.
//!
//! A line that cannot be read (its writer was killed half-way) is left out. Nothing is flushed to the disk: after a power
//! cut the agent is asked for what is missing.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use torpor_envd_api::telemetry::{LogEntry, LogLevel};
use torpor_types::SandboxId;

/// A file that is larger becomes the old one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Who says what the server itself has to tell.
const SERVER: &str = "server";

const EXTENSION: &str = ".ndjson";
const OLD_EXTENSION: &str = ".old.ndjson";

/// One entry as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    boot_id: String,
    /// Its number in that boot; 0 of an entry of the server's own.
    pub seq: u64,
    /// When, in microseconds since 1970; never before the entry above it.
    pub at_us: i64,
    /// How much it matters.
    pub level: LogLevel,
    /// Who says it.
    pub logger: String,
    /// What.
    pub message: String,
    /// About what.
    pub fields: BTreeMap<String, String>,
}

/// The last entry that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    pub(super) boot_id: String,
    pub(super) seq: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Entry(LogRecord),
    Server(LogRecord),
    Pause(Cursor),
}

/// The file while it is written to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    old_path: PathBuf,
    /// `None` while nothing is expected to be written.
    file: Option<File>,
    bytes: u64,
    last_us: i64,
    cursor: Option<Cursor>,
    paused: Option<Cursor>,
}

/// Which entries a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// The moment from which on, or back from which, in microseconds since 1970; itself included.
    pub cursor_us: Option<i64>,
    /// Entries at most.
    pub limit: usize,
    /// Which way.
    pub direction: Direction,
    /// The least that matters.
    pub min_level: LogLevel,
    /// What the message must have in it; case matters.
    pub search: String,
}

/// The order of a log, and which end of it comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Forward,
    /// Newest first.
    Backward,
}

/// All entries that are kept, the oldest first.
pub(super) fn read(directory: &Path, id: &SandboxId) -> io::Result<Vec<LogRecord>> {
    let mut records = Vec::new();
    let mut newest = i64::MIN;
    for extension in [OLD_EXTENSION, EXTENSION] {
        for line in read_lines(&path(directory, id, extension))? {
            // Between the two a new file may have been begun; then the old one has what the new one had.
            if let Line::Entry(record) | Line::Server(record) = line
                && record.at_us >= newest
            {
                newest = record.at_us;
                records.push(record);
            }
        }
    }
    Ok(records)
}

/// Removes the log.
pub(super) fn remove(directory: &Path, id: &SandboxId) -> io::Result<()> {
    [EXTENSION, OLD_EXTENSION].iter().try_for_each(|extension| {
        match fs::remove_file(path(directory, id, extension)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    })
}

/// Removes the logs of all sandboxes but these.
pub(super) fn remove_all_but(directory: &Path, ids: &HashSet<SandboxId>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.split('.').next()?.parse().ok()) else { continue };
        if !ids.contains(&id) {
            remove(directory, &id)?;
        }
    }
    Ok(())
}

fn path(directory: &Path, id: &SandboxId, extension: &str) -> PathBuf {
    directory.join(format!("{id}{extension}"))
}

fn read_lines(path: &Path) -> io::Result<Vec<Line>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        lines.extend(serde_json::from_slice::<Line>(&line?).ok());
    }
    Ok(lines)
}

// === impl LogFile ===

impl LogFile {
    /// Opens the log of a sandbox, or begins it.
    pub(super) fn open(directory: &Path, id: &SandboxId) -> io::Result<LogFile> {
        let (path, old_path) = (path(directory, id, EXTENSION), path(directory, id, OLD_EXTENSION));
        let (mut cursor, mut paused, mut last_us) = (None, None, i64::MIN);
        for line in read_lines(&old_path)?.into_iter().chain(read_lines(&path)?) {
            match line {
                Line::Pause(at) => paused = Some(at),
                Line::Server(record) => last_us = last_us.max(record.at_us),
                Line::Entry(record) => {
                    last_us = last_us.max(record.at_us);
                    cursor = Some(Cursor { boot_id: record.boot_id, seq: record.seq });
                }
            }
        }
        let file = append_to(&path)?;
        let bytes = file.metadata()?.len();
        let mut log = LogFile { path, old_path, file: Some(file), bytes, last_us, cursor, paused };
        if log.bytes > 0 {
            // Ends a line that may not have been finished.
            log.write(b"\n")?;
        }
        Ok(log)
    }

    pub(super) fn cursor(&self) -> Option<Cursor> {
        self.cursor.clone()
    }

    /// Appends the entries behind the cursor.
    pub(super) fn append(&mut self, boot_id: &str, entries: &[LogEntry], now: Timestamp) -> io::Result<()> {
        let mut text = Vec::new();
        let (mut last_us, mut cursor) = (self.last_us, self.cursor.clone());
        for entry in entries {
            if cursor.as_ref().is_some_and(|known| known.boot_id == boot_id && known.seq >= entry.seq) {
                continue;
            }
            last_us = entry.at_us.min(now.as_microsecond()).max(last_us);
            cursor = Some(Cursor { boot_id: boot_id.to_owned(), seq: entry.seq });
            let record = LogRecord {
                boot_id: boot_id.to_owned(),
                seq: entry.seq,
                at_us: last_us,
                level: entry.level,
                logger: entry.logger.clone(),
                message: entry.message.clone(),
                fields: entry.fields.clone(),
            };
            serde_json::to_writer(&mut text, &Line::Entry(record))?;
            text.push(b'\n');
        }
        self.write(&text)?;
        (self.last_us, self.cursor) = (last_us, cursor);
        if self.bytes > MAX_FILE_BYTES { self.begin_anew() } else { Ok(()) }
    }

    /// Appends an entry that the guest knows nothing of.
    pub(super) fn append_own(
        &mut self,
        level: LogLevel,
        message: String,
        fields: BTreeMap<String, String>,
        now: Timestamp,
    ) -> io::Result<()> {
        let at_us = now.as_microsecond().max(self.last_us);
        let (boot_id, logger) = (String::new(), SERVER.to_owned());
        let record = LogRecord { boot_id, seq: 0, at_us, level, logger, message, fields };
        let mut text = serde_json::to_vec(&Line::Server(record))?;
        text.push(b'\n');
        self.write(&text)?;
        self.last_us = at_us;
        if self.bytes > MAX_FILE_BYTES { self.begin_anew() } else { Ok(()) }
    }

    /// Notes that the sandbox was paused when `known` was the last entry.
    pub(super) fn mark_pause(&mut self, known: Option<Cursor>) -> io::Result<()> {
        self.paused = known;
        self.write_pause()
    }

    /// Lets go of the file until something is written again; what is known of its content stays.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// The sandbox is back at its last pause.
    pub(super) fn set_back(&mut self) {
        self.cursor = self.paused.clone();
    }

    fn write_pause(&mut self) -> io::Result<()> {
        let Some(paused) = self.paused.clone() else { return Ok(()) };
        let mut text = serde_json::to_vec(&Line::Pause(paused))?;
        text.push(b'\n');
        self.write(&text)
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        fs::rename(&self.path, &self.old_path)?;
        self.file = Some(append_to(&self.path)?);
        self.bytes = 0;
        self.write_pause()
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => append_to(&self.path)?,
        };
        let written = file.write_all(text);
        self.file = Some(file);
        written?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

// === impl LogQuery ===

impl Default for LogQuery {
    fn default() -> LogQuery {
        LogQuery {
            cursor_us: None,
            limit: 1000,
            direction: Direction::Forward,
            min_level: LogLevel::Debug,
            search: String::new(),
        }
    }
}

impl LogQuery {
    /// Picks from the whole log, oldest first, and orders as asked.
    pub(crate) fn select(&self, records: Vec<LogRecord>) -> Vec<LogRecord> {
        let wanted = records.into_iter().filter(|record| {
            let in_time = self.cursor_us.is_none_or(|cursor| match self.direction {
                Direction::Forward => record.at_us >= cursor,
                Direction::Backward => record.at_us <= cursor,
            });
            in_time && record.level >= self.min_level && record.message.contains(&self.search)
        });
        match self.direction {
            Direction::Forward => wanted.take(self.limit).collect(),
            Direction::Backward => {
                let mut wanted: Vec<_> = wanted.collect();
                wanted.reverse();
                wanted.truncate(self.limit);
                wanted
            }
        }
    }
}

#[cfg(test)]
mod tests;

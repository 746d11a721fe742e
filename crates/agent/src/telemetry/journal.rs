//! The guest's log: bounded, numbered, in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use jiff::Timestamp;
use tokio::sync::watch;
use torpor_envd_api::telemetry::{LogEntry, LogLevel};

use super::work::OpenWork;

/// What entries may take, about, in bytes.
const MAX_BYTES: usize = 512 << 10;

/// What an entry takes beside its texts.
const ENTRY_BYTES: usize = 128;

/// Bytes of output that may be logged at once.
const BURST_BYTES: f64 = 256.0 * 1024.0;

/// Bytes of output per second that may be logged in the long run.
const REFILL_BYTES_PER_S: f64 = 32.0 * 1024.0;

/// The log.
#[derive(Debug)]
pub struct Journal {
    boot_id: String,
    state: Mutex<State>,
    /// The number of the last entry.
    written: watch::Sender<u64>,
    turns: watch::Sender<u64>,
    work: OpenWork,
}

#[derive(Debug)]
struct State {
    entries: VecDeque<LogEntry>,
    bytes: usize,
    last_seq: u64,
    budget: Budget,
}

/// How much output may still be logged. On the monotonic clock, which stands still while the machine is paused.
#[derive(Debug)]
struct Budget {
    left: f64,
    refilled: Instant,
}

// === impl Journal ===

impl Default for Journal {
    fn default() -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let budget = Budget { left: BURST_BYTES, refilled: Instant::now() };
        Self {
            boot_id: boot_id.trim().to_owned(),
            state: Mutex::new(State { entries: VecDeque::new(), bytes: 0, last_seq: 0, budget }),
            written: watch::Sender::new(0),
            turns: watch::Sender::new(0),
            work: OpenWork::default(),
        }
    }
}

impl Journal {
    /// Another one for each boot of the guest.
    pub(super) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Counts the commands and terminals.
    pub(crate) fn work(&self) -> &OpenWork {
        &self.work
    }

    /// Writes an entry; the oldest go when there is no room.
    pub(crate) fn write(
        &self,
        level: LogLevel,
        logger: &str,
        message: impl Into<String>,
        fields: BTreeMap<String, String>,
    ) {
        let mut state = self.lock();
        state.last_seq += 1;
        let entry = LogEntry {
            seq: state.last_seq,
            at_us: Timestamp::now().as_microsecond(),
            level,
            logger: logger.to_owned(),
            message: message.into(),
            fields,
        };
        state.bytes += size(&entry);
        state.entries.push_back(entry);
        while state.bytes > MAX_BYTES
            && let Some(oldest) = state.entries.pop_front()
        {
            state.bytes -= size(&oldest);
        }
        self.written.send_replace(state.last_seq);
    }

    /// Writes what the agent itself has to tell.
    pub(crate) fn event(&self, message: impl Into<String>, fields: BTreeMap<String, String>) {
        self.write(LogLevel::Info, "agent", message, fields);
    }

    /// Everything behind entry `seq`. Of entries that are not kept any more, the first one returned tells how many.
    pub(super) fn after(&self, seq: u64) -> Vec<LogEntry> {
        let state = self.lock();
        let mut entries: Vec<LogEntry> =
            state.entries.iter().filter(|entry| entry.seq > seq).cloned().collect();
        let first = entries.first().map_or(state.last_seq + 1, |entry| entry.seq);
        let lost = first.saturating_sub(seq + 1);
        if lost > 0 {
            let gap = LogEntry {
                seq: first - 1,
                at_us: entries.first().map_or_else(|| Timestamp::now().as_microsecond(), |entry| entry.at_us),
                level: LogLevel::Warn,
                logger: "agent".to_owned(),
                message: format!("{lost} log entries were not kept: there were too many"),
                fields: BTreeMap::new(),
            };
            entries.insert(0, gap);
        }
        entries
    }

    /// Goes on numbering behind `seq`, which the host has seen. It is ahead when the machine was set back to an
    /// earlier pause; what the journal holds was written before that one, and the host has seen that too.
    pub(super) fn skip_to(&self, seq: u64) {
        let mut state = self.lock();
        if state.last_seq < seq {
            state.last_seq = seq;
            state.entries.clear();
            state.bytes = 0;
        }
    }

    /// Forgets what was written in another sandbox's life, or while the template was made.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        state.entries.clear();
        state.bytes = 0;
        state.last_seq = 0;
        self.written.send_replace(0);
    }

    /// Whether `bytes` of output may be logged now.
    pub(super) fn afford(&self, bytes: usize) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        let passed = now.duration_since(state.budget.refilled).as_secs_f64();
        state.budget.refilled = now;
        let left = (state.budget.left + passed * REFILL_BYTES_PER_S).min(BURST_BYTES);
        let affordable = left >= bytes as f64;
        state.budget.left = if affordable { left - bytes as f64 } else { left };
        affordable
    }

    pub(super) fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Ends the stream there is and makes its caller's the one.
    pub(super) fn take_turn(&self) -> watch::Receiver<u64> {
        self.turns.send_modify(|turn| *turn += 1);
        self.turns.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(entry: &LogEntry) -> usize {
    let fields: usize = entry.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    ENTRY_BYTES + entry.message.len() + fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(journal: &Journal, after: u64) -> Vec<u64> {
        journal.after(after).iter().map(|entry| entry.seq).collect()
    }

    #[test]
    fn what_was_seen_does_not_come_again() {
        let journal = Journal::default();
        for n in 0..3 {
            journal.event(format!("{n}"), BTreeMap::new());
        }
        assert_eq!(numbers(&journal, 0), [1, 2, 3]);
        assert_eq!(numbers(&journal, 2), [3]);
        assert_eq!(numbers(&journal, 3), [0_u64; 0]);
    }

    #[test]
    fn a_flood_is_bounded_and_what_did_not_fit_is_told() {
        let journal = Journal::default();
        for _ in 0..2000 {
            journal.event("x".repeat(1000), BTreeMap::new());
        }
        let entries = journal.after(10);
        assert!(entries.len() * 1000 <= MAX_BYTES);
        let lost = entries[1].seq - 11;
        assert_eq!(entries[0].message, format!("{lost} log entries were not kept: there were too many"));
        assert_eq!((entries[0].seq, entries.last().unwrap().seq), (entries[1].seq - 1, 2000));
    }

    #[test]
    fn numbers_go_on_behind_what_the_host_has_seen_before_the_machine_was_set_back() {
        let journal = Journal::default();
        journal.event("before the pause", BTreeMap::new());
        journal.skip_to(5);
        journal.event("after it", BTreeMap::new());
        assert_eq!(numbers(&journal, 5), [6]);
        journal.skip_to(2);
        assert_eq!(numbers(&journal, 5), [6]);
    }

    #[test]
    fn output_is_logged_up_to_a_burst_at_once() {
        let journal = Journal::default();
        let chunk = BURST_BYTES as usize / 4;
        let affordable = (0..16).filter(|_| journal.afford(chunk)).count();
        assert_eq!(affordable, 4);
    }
}

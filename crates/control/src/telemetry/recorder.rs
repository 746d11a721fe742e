//! The two stores of one sandbox, and which run of it may write to them.
//!
//! A *run* begins when the agent answers after a create, a resume or a restart of the server, and ends with a pause or a
//! crash. Only the newest run writes: what a former one still has in its hands when the next begins is asked for again.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use torpor_envd_api::http::Metrics;
use torpor_envd_api::telemetry::{LogEntry, LogLevel};
use torpor_types::SandboxId;

use super::log::{Cursor, LogFile, LogQuery, LogRecord};
use super::series::{MetricPoint, Series};

/// The stores of one sandbox.
#[derive(Debug)]
pub(super) struct Recorder {
    directory: PathBuf,
    id: SandboxId,
    series: Mutex<Series>,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    /// `None` until it is needed.
    file: Option<LogFile>,
    /// Whether the file has to be set back when it is opened.
    set_back: bool,
    newest_run: u64,
    /// No run is under way: the file is closed after each write, for there may be thousands of such sandboxes.
    at_rest: bool,
    /// What was known when the newest run began.
    known_then: Option<Cursor>,
    removed: bool,
}

/// One run of a sandbox, as the actor and the follower see it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Recording {
    recorder: Arc<Recorder>,
    run: u64,
}

/// A newer run has begun, or the sandbox is gone.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("a newer run of the sandbox has begun")]
    Overtaken,
    #[error("the log cannot be written: {0}")]
    Io(#[from] io::Error),
}

// === impl Log ===

impl Log {
    fn close_at_rest(&mut self) {
        if let Some(file) = self.file.as_mut().filter(|_| self.at_rest) {
            file.close();
        }
    }
}

// === impl Recorder ===

impl Recorder {
    pub(super) fn new(directory: PathBuf, id: SandboxId) -> Recorder {
        let log = Log {
            file: None,
            set_back: false,
            newest_run: 0,
            at_rest: true,
            known_then: None,
            removed: false,
        };
        Recorder { directory, id, series: Mutex::default(), log: Mutex::new(log) }
    }

    pub(super) fn metrics(&self, start: i64, end: i64) -> Vec<MetricPoint> {
        self.series().between(start, end)
    }

    pub(super) fn newest_metric(&self) -> Option<MetricPoint> {
        self.series().newest()
    }

    pub(super) fn logs(&self, query: &LogQuery) -> io::Result<Vec<LogRecord>> {
        // Read without the lock: a client must not hold up the follower. Files are only appended to or renamed.
        let records = super::log::read(&self.directory, &self.id)?;
        Ok(query.select(records))
    }

    /// See [`super::Telemetry::set_back`].
    pub(super) fn set_back(&self) {
        let mut log = self.lock();
        log.newest_run += 1;
        match &mut log.file {
            Some(file) => file.set_back(),
            None => log.set_back = true,
        }
    }

    /// See [`super::Telemetry::note`].
    pub(super) fn note(&self, level: LogLevel, message: String, fields: BTreeMap<String, String>) {
        let mut log = self.lock();
        if log.removed {
            return;
        }
        let written =
            self.file(&mut log).and_then(|file| file.append_own(level, message, fields, Timestamp::now()));
        if let Err(error) = written {
            tracing::warn!(sandbox = %self.id, %error, "the log could not be written");
        }
        log.close_at_rest();
    }

    pub(super) fn remove(&self) {
        let mut log = self.lock();
        log.removed = true;
        log.newest_run += 1;
        log.file = None;
        if let Err(error) = super::log::remove(&self.directory, &self.id) {
            tracing::warn!(sandbox = %self.id, %error, "the log could not be removed");
        }
    }

    fn file<'a>(&self, log: &'a mut Log) -> io::Result<&'a mut LogFile> {
        let file = match log.file.take() {
            Some(file) => file,
            None => {
                let mut file = LogFile::open(&self.directory, &self.id)?;
                if std::mem::take(&mut log.set_back) {
                    file.set_back();
                }
                file
            }
        };
        Ok(log.file.insert(file))
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn series(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Recording ===

impl Recording {
    pub(super) fn new(recorder: Arc<Recorder>) -> Recording {
        // The run's number is taken at once, so that a pause that follows on its heels is told from the next run.
        let run = {
            let mut log = recorder.lock();
            log.newest_run += 1;
            log.at_rest = false;
            log.known_then = log.file.as_ref().and_then(LogFile::cursor);
            log.newest_run
        };
        Recording { recorder, run }
    }

    pub(super) fn id(&self) -> &SandboxId {
        &self.recorder.id
    }

    /// What of the log is known.
    pub(super) fn cursor(&self) -> Result<Option<Cursor>, RecordError> {
        let mut log = self.recorder.lock();
        self.require_newest(&log)?;
        Ok(self.recorder.file(&mut log)?.cursor())
    }

    /// Appends what the agent told; entries that are known already are left out.
    pub(super) fn append(&self, boot_id: &str, entries: &[LogEntry]) -> Result<(), RecordError> {
        let mut log = self.recorder.lock();
        self.require_newest(&log)?;
        Ok(self.recorder.file(&mut log)?.append(boot_id, entries, Timestamp::now())?)
    }

    /// Adds what the agent measured just now.
    pub(super) fn measure(&self, metrics: &Metrics) {
        self.recorder.series().add(MetricPoint::new(Timestamp::now(), metrics));
    }

    /// The run ended with a pause. Notes, in the background, up to where the log is known to the paused machine's agent.
    pub(crate) fn paused(self) {
        tokio::task::spawn_blocking(move || {
            let mut log = self.recorder.lock();
            let overtaken = log.newest_run > self.run;
            if log.removed {
                return;
            }
            let known_then = log.known_then.clone();
            let result = self.recorder.file(&mut log).and_then(|file| {
                let known = if overtaken { known_then } else { file.cursor() };
                file.mark_pause(known)
            });
            if !overtaken {
                log.newest_run += 1;
                log.at_rest = true;
            }
            log.close_at_rest();
            if let Err(error) = result {
                tracing::warn!(sandbox = %self.recorder.id, %error, "a pause could not be noted in the log");
            }
        });
    }

    fn require_newest(&self, log: &Log) -> Result<(), RecordError> {
        match log.newest_run == self.run && !log.removed {
            true => Ok(()),
            false => Err(RecordError::Overtaken),
        }
    }
}

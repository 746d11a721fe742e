//! What sandboxes tell while they run: their logs and their use of resources.
//!
//! ```text
//!  agent ── GET /telemetry ──▶ follow ──▶ Recorder of the sandbox ──▶ LogFile   <data>/logs/<id>.ndjson
//!                                                 └─────────────────▶ Series    in memory
//! ```
//!
//! While a sandbox runs, one task ([`follow`]) reads the stream of its agent. Nothing waits for it: neither a pause nor a client.
//! Both stores are bounded. They end with the sandbox; a pause keeps them. A restart of the server keeps the log, and
//! starts the series anew.
//!
//! Every entry of a log has a number, by which the agent is asked for what is missing: see [`log`].

mod follow;
mod log;
mod recorder;
mod series;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use torpor_envd_api::telemetry::LogLevel;
use torpor_network::Connector;
use torpor_types::SandboxId;

use crate::lifecycle::Activity;

pub use log::{Direction, LogQuery, LogRecord};
use recorder::Recorder;
pub(crate) use recorder::Recording;
pub use series::MetricPoint;

/// The logs and metrics of all sandboxes of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    recorders: Mutex<HashMap<SandboxId, Arc<Recorder>>>,
}

// === impl Telemetry ===

impl Telemetry {
    /// Keeps logs in `directory`, which is made if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(directory: PathBuf) -> io::Result<Telemetry> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Telemetry { inner: Arc::new(Inner { directory, recorders: Mutex::default() }) })
    }

    /// Starts to follow a sandbox whose agent answers, until `closed`. A follower of an earlier run ends.
    pub(crate) fn follow(
        &self,
        id: &SandboxId,
        connector: Connector,
        access_token: Option<String>,
        closed: CancellationToken,
        activity: Arc<Activity>,
    ) -> Recording {
        let recording = Recording::new(self.recorder(id));
        tokio::spawn(follow::follow(recording.clone(), connector, access_token, closed, activity));
        recording
    }

    /// Writes, in the background, what the server itself has to tell into the log of a sandbox.
    pub(crate) fn note(
        &self,
        id: &SandboxId,
        level: LogLevel,
        message: impl Into<String>,
        fields: BTreeMap<String, String>,
    ) {
        let (recorder, message) = (self.recorder(id), message.into());
        tokio::task::spawn_blocking(move || recorder.note(level, message, fields));
    }

    /// The sandbox is back at its last pause: what came after that did not happen.
    pub(crate) fn set_back(&self, id: &SandboxId) {
        self.recorder(id).set_back();
    }

    /// Forgets a sandbox.
    pub(crate) async fn remove(&self, id: &SandboxId) {
        let recorder = self.recorder(id);
        self.lock().remove(id);
        if let Err(error) = tokio::task::spawn_blocking(move || recorder.remove()).await {
            tracing::error!(%error, "removing a log panicked");
        }
    }

    /// Removes the logs of all other sandboxes.
    pub(crate) async fn keep_only(&self, ids: HashSet<SandboxId>) {
        let directory = self.inner.directory.clone();
        let removed = tokio::task::spawn_blocking(move || log::remove_all_but(&directory, &ids)).await;
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "logs of sandboxes that are gone could not be removed"),
            Err(error) => tracing::error!(%error, "removing logs panicked"),
        }
    }

    /// The use of resources from second `start` to second `end` since 1970, both included, oldest first.
    pub fn metrics(&self, id: &SandboxId, start: i64, end: i64) -> Vec<MetricPoint> {
        self.recorder(id).metrics(start, end)
    }

    /// The newest use of resources.
    pub fn newest_metric(&self, id: &SandboxId) -> Option<MetricPoint> {
        self.recorder(id).newest_metric()
    }

    /// Entries of a sandbox's log.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn logs(&self, id: &SandboxId, query: LogQuery) -> io::Result<Vec<LogRecord>> {
        let recorder = self.recorder(id);
        tokio::task::spawn_blocking(move || recorder.logs(&query)).await.map_err(io::Error::other)?
    }

    fn recorder(&self, id: &SandboxId) -> Arc<Recorder> {
        let new = || Arc::new(Recorder::new(self.inner.directory.clone(), id.clone()));
        self.lock().entry(id.clone()).or_insert_with(new).clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Arc<Recorder>>> {
        self.inner.recorders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

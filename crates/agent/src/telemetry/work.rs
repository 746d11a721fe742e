//! How many commands and terminals there are, for the host, which wants to know whether the sandbox is idle.

use std::sync::Arc;

use tokio::sync::watch;
use torpor_envd_api::telemetry::Work;

/// Counts commands and terminals.
#[derive(Debug, Clone)]
pub(crate) struct OpenWork(Arc<watch::Sender<Work>>);

/// One that runs, until this is dropped.
#[derive(Debug)]
pub(crate) struct Open(OpenWork);

// === impl OpenWork ===

impl Default for OpenWork {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Work::default())))
    }
}

impl OpenWork {
    /// One begins.
    pub(crate) fn begin(&self) -> Open {
        self.0.send_modify(|work| {
            work.open += 1;
            work.started += 1;
        });
        Open(self.clone())
    }

    pub(super) fn watch(&self) -> watch::Receiver<Work> {
        self.0.subscribe()
    }
}

// === impl Open ===

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.send_modify(|work| work.open = work.open.saturating_sub(1));
    }
}

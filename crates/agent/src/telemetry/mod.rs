//! `GET /telemetry`: the log and the metrics, streamed to the host.
//!
//! ```text
//!   processes ──▶ Lines ──┐
//!   agent's events ───────┴─▶ Journal (bounded) ──▶ stream ──▶ host: log of the sandbox
//!   /proc ──────────────────── every 5 s ─────────────┘              series of metrics
//! ```
//!
//! One stream at a time: a new one ends the one before, whose client may be gone without a trace since the machine was paused.
//! Entries are sent in batches, so that a process that prints much does not make the guest send much more.

mod journal;
mod lines;
mod work;

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, Query, State},
    response::{IntoResponse, Response},
};
use futures::stream;
use http::header::CONTENT_TYPE;
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior},
};
use torpor_envd_api::telemetry::{METRICS_INTERVAL_S, Telemetry, TelemetryQuery, Work};

pub use journal::Journal;
pub(crate) use lines::Lines;
pub(crate) use work::Open;

use crate::{error::HttpError, init::only_host, metrics, server::Shared};

/// How long entries are gathered before they are sent.
const GATHER: Duration = Duration::from_millis(100);

/// The state of one stream.
struct Telling {
    journal: Arc<Journal>,
    /// The last entry that was sent.
    sent: u64,
    written: watch::Receiver<u64>,
    /// Becomes another value when a newer stream takes over.
    turn: watch::Receiver<u64>,
    work: watch::Receiver<Work>,
    metrics: Interval,
    /// Lines to send before anything else.
    waiting: VecDeque<Telemetry>,
}

/// The handler.
pub async fn get(
    State(state): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Query(query): Query<TelemetryQuery>,
) -> Result<Response, HttpError> {
    only_host(&state, peer)?;
    let journal = state.journal().clone();
    let seen = if query.boot_id == journal.boot_id() { query.after } else { 0 };
    let telling = Telling::new(journal, seen);
    let lines = stream::unfold(telling, |mut telling| async move {
        let lines = telling.next().await?;
        Some((Ok::<_, std::convert::Infallible>(lines), telling))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

// === impl Telling ===

impl Telling {
    fn new(journal: Arc<Journal>, seen: u64) -> Self {
        journal.skip_to(seen);
        let mut metrics = tokio::time::interval_at(Instant::now(), Duration::from_secs(METRICS_INTERVAL_S));
        metrics.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = journal.work().watch();
        let at_first = Telemetry::Work(*work.borrow_and_update());
        let hello = Telemetry::Hello { boot_id: journal.boot_id().to_owned() };
        Self {
            sent: seen,
            work,
            written: journal.written(),
            turn: journal.take_turn(),
            metrics,
            waiting: VecDeque::from([hello, at_first]),
            journal,
        }
    }

    /// The next lines; `None` when a newer stream has taken over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let mut lines = String::new();
            for line in self.waiting.drain(..) {
                // Strings and numbers always can be written.
                lines.push_str(&serde_json::to_string(&line).unwrap_or_default());
                lines.push('\n');
            }
            if !lines.is_empty() {
                return Some(Bytes::from(lines));
            }
            let sent = self.sent;
            let written = &mut self.written;
            let something_new = async { written.wait_for(|written| *written > sent).await.is_ok() };
            tokio::select! {
                _ = self.turn.changed() => return None,
                _ = self.metrics.tick() => {
                    self.waiting.push_back(Telemetry::Work(*self.work.borrow_and_update()));
                    match metrics::sample().await {
                        Ok(sample) => self.waiting.push_back(Telemetry::Metrics(sample)),
                        Err(error) => tracing::debug!(%error, "no metrics"),
                    }
                }
                // The journal lives as long as this, and the sender with it.
                _ = self.work.changed() => {
                    self.waiting.push_back(Telemetry::Work(*self.work.borrow_and_update()));
                }
                there_is = something_new => {
                    if !there_is {
                        return None;
                    }
                    tokio::time::sleep(GATHER).await;
                    for entry in self.journal.after(self.sent) {
                        self.sent = entry.seq;
                        self.waiting.push_back(Telemetry::Log(entry));
                    }
                }
            }
        }
    }
}

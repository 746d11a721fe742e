//! A watch as a stream of messages: a start message, then events, and in long silences signs of life.

use std::time::Duration;

use connectrpc::ConnectError;
use futures::{Stream, stream};
use tokio::time::{Instant, sleep, sleep_until};
use torpor_envd_api::filesystem::WatchDirResponse;
use torpor_envd_api::filesystem::watch_dir_response::{KeepAlive, StartEvent};

use super::Watch;

/// A stream's state between two messages.
struct Streaming {
    watch: Watch,
    keepalive: Duration,
    deadline: Option<Instant>,
    started: bool,
    ended: bool,
}

/// The messages of a watch until `deadline`, with no silence longer than `keepalive`.
pub(crate) fn messages(
    watch: Watch,
    keepalive: Duration,
    deadline: Option<std::time::Instant>,
) -> impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send {
    let deadline = deadline.map(Instant::from_std);
    let streaming = Streaming { watch, keepalive, deadline, started: false, ended: false };
    stream::unfold(streaming, |mut streaming| async move {
        if streaming.ended {
            return None;
        }
        let message = streaming.next().await;
        streaming.ended = message.is_err();
        Some((message, streaming))
    })
}

// === impl Streaming ===

impl Streaming {
    async fn next(&mut self) -> Result<WatchDirResponse, ConnectError> {
        let event = if self.started {
            let deadline = self.deadline;
            let passed = async move {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = passed => return Err(ConnectError::deadline_exceeded("the watch's timeout has passed")),
                event = self.watch.next() => event?.into(),
                () = sleep(self.keepalive) => KeepAlive::default().into(),
            }
        } else {
            self.started = true;
            StartEvent::default().into()
        };
        Ok(WatchDirResponse { event, ..WatchDirResponse::default() })
    }
}

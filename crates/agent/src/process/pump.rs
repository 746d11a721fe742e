//! Carrying what a process writes from the kernel to its feed.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{io::unix::AsyncFd, sync::watch, time::timeout};

use super::feed::{Channel, Event, Feed};
use crate::telemetry::Lines;

/// The largest chunk from a pipe.
const PIPE_CHUNK: usize = 32 << 10;
/// The largest chunk from a terminal.
const TERMINAL_CHUNK: usize = 16 << 10;

/// After the process has ended, how long its output has to be silent to be taken for complete although some
/// descendant still holds it open.
const SILENCE: Duration = Duration::from_millis(200);
/// How many chunks of descendants are taken for the process's own after its end.
const LATE_CHUNKS: usize = 64;

/// Reads one channel of a process until nobody can write to it any more.
pub(super) struct Pump {
    /// Where it reads; does not block.
    pub(super) source: Arc<AsyncFd<OwnedFd>>,
    /// What it is.
    pub(super) channel: Channel,
    /// Where it hands over.
    pub(super) feed: Arc<Feed>,
    /// Where it is logged.
    pub(super) lines: Lines,
    /// Becomes true when the process has ended.
    pub(super) exited: watch::Receiver<bool>,
}

// === impl Pump ===

impl Pump {
    /// Hands over everything until the process has ended and what it wrote is handed over. Then goes on reading
    /// in the background, for descendants that still write, and throws that away.
    pub(super) async fn run(mut self) {
        let size = if self.channel == Channel::Terminal { TERMINAL_CHUNK } else { PIPE_CHUNK };
        let mut buffer = vec![0; size];
        loop {
            let read = tokio::select! {
                biased;
                // First, or descendants that write without pause would hide the end. An error means that the sender
                // is gone, which also is an end.
                _ = self.exited.wait_for(|exited| *exited) => break,
                read = read(&self.source, &mut buffer) => read,
            };
            match read {
                0 => return,
                count => self.publish(&buffer[..count]).await,
            }
        }
        // What is in the kernel's buffer now was written before the end: the process's own. More may follow from
        // descendants that share its output, as in `cmd > >(tee log)`.
        let mut own = rustix::io::ioctl_fionread(self.source.get_ref()).unwrap_or(0);
        let mut late = 0;
        while own > 0 || late < LATE_CHUNKS {
            match timeout(SILENCE, read(&self.source, &mut buffer)).await {
                Ok(0) => return,
                Err(_silent) => break,
                Ok(count) => {
                    self.publish(&buffer[..count]).await;
                    late += usize::from(own == 0);
                    own = own.saturating_sub(count as u64);
                }
            }
        }
        tokio::spawn(async move { while read(&self.source, &mut buffer).await > 0 {} });
    }

    async fn publish(&mut self, bytes: &[u8]) {
        self.lines.take(bytes);
        self.feed.publish(Event::Data(self.channel, Bytes::copy_from_slice(bytes))).await;
    }
}

/// Reads some bytes; 0 when there will be no more. A terminal says so with `EIO`.
async fn read(source: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> usize {
    let read = source.async_io(tokio::io::Interest::READABLE, |fd| {
        loop {
            match rustix::io::read(fd, &mut *buffer) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map_err(io::Error::from),
            }
        }
    });
    match read.await {
        Ok(count) => count,
        Err(error) => {
            tracing::trace!(%error, "output closed");
            0
        }
    }
}

//! Whether what passes through the gateway to a sandbox is work, or somebody asking now and then.
//!
//! An *exchange* is a request and its answer, until the last byte of both. It is work if it lasts: a long answer that is streamed, a
//! long request, an answer that is waited for. One that is over before [`LONG`] was polling, and counts as nothing. A
//! *tunnel* (an upgraded connection, a WebSocket) is work from its first moment.

use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// An exchange that lasts so long is work.
pub const LONG: Duration = Duration::from_secs(5);

/// The exchanges of one run of a sandbox. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Mutex<State>>);

/// What [`Traffic`] is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrafficNow {
    /// Whether a tunnel is open, or an exchange that has lasted.
    pub is_work: bool,
    /// When the last work ended; `None` if there has been none.
    pub last_work: Option<Instant>,
    /// When the exchange began that has been open for longest, tunnels left out.
    pub oldest: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    begun: BTreeMap<u64, Instant>,
    tunnels: HashSet<u64>,
    next: u64,
    last_work: Option<Instant>,
}

/// An exchange, until this is dropped.
#[derive(Debug)]
pub(crate) struct Exchange {
    traffic: Traffic,
    number: u64,
}

/// A body that keeps its exchange open as long as it lasts.
#[derive(Debug)]
pub(crate) struct Counted<B> {
    body: B,
    _exchange: Exchange,
}

// === impl Traffic ===

impl Traffic {
    /// An exchange begins.
    pub(crate) fn begin(&self) -> Exchange {
        let number = self.lock().begin(Instant::now());
        Exchange { traffic: self.clone(), number }
    }

    /// What is open now, and what was.
    pub fn now(&self) -> TrafficNow {
        self.lock().at(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn begin(&mut self, now: Instant) -> u64 {
        self.next += 1;
        self.begun.insert(self.next, now);
        self.next
    }

    fn end(&mut self, number: u64, now: Instant) {
        let began = self.begun.remove(&number);
        let was_tunnel = self.tunnels.remove(&number);
        if was_tunnel || began.is_some_and(|began| is_long(began, now)) {
            self.last_work = Some(now);
        }
    }

    fn at(&self, now: Instant) -> TrafficNow {
        // Numbers go up with time.
        let oldest = self.begun.values().next().copied();
        let is_work = !self.tunnels.is_empty() || oldest.is_some_and(|began| is_long(began, now));
        TrafficNow { is_work, last_work: self.last_work, oldest }
    }
}

fn is_long(began: Instant, now: Instant) -> bool {
    now.saturating_duration_since(began) >= LONG
}

// === impl Exchange ===

impl Exchange {
    /// It has become a tunnel.
    pub(crate) fn upgraded(&self) {
        let mut state = self.traffic.lock();
        state.begun.remove(&self.number);
        state.tunnels.insert(self.number);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.traffic.lock().end(self.number, Instant::now());
    }
}

// === impl Counted ===

impl<B> Counted<B> {
    pub(crate) fn new(body: B, exchange: Exchange) -> Self {
        Self { body, _exchange: exchange }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_is_nothing_and_what_lasts_is_work() {
        let (mut state, start) = (State::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..100 {
            let poll = state.begin(at(second));
            assert!(!state.at(at(second)).is_work);
            state.end(poll, at(second + 1));
        }
        assert_eq!(state.at(at(100)), TrafficNow { is_work: false, last_work: None, oldest: None });
        let stream = state.begin(at(100));
        assert!(!state.at(at(104)).is_work);
        assert!(state.at(at(105)).is_work);
        state.end(stream, at(130));
        assert_eq!(state.at(at(131)).last_work, Some(at(130)));
    }

    #[test]
    fn a_tunnel_is_work_from_its_first_moment_to_its_last() {
        let traffic = Traffic::default();
        let exchange = traffic.begin();
        assert!(!traffic.now().is_work);
        exchange.upgraded();
        assert!(traffic.now().is_work);
        assert_eq!(traffic.now().last_work, None);
        drop(exchange);
        assert!(!traffic.now().is_work);
        assert!(traffic.now().last_work.is_some());
    }
}

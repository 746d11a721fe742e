//! What a process writes, handed to any number of subscribers.
//!
//! Each subscriber has a buffer of its own, a fixed number of chunks. Handing over a chunk waits until every
//! subscriber has room, which in the end makes the process wait in its `write`: nothing is lost and nothing grows.
//! With no subscriber chunks are dropped at once.
//!
//! One subscriber that never reads must not stop the process for the others. If it takes nothing for
//! [`PATIENCE`] while there are others, it is dropped: its stream ends with an error instead of an end event. A
//! subscriber alone may take all the time it wants, unless the machine has been resumed since it came: then its
//! client may be gone without the kernel knowing, and it is dropped too.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use tokio::{sync::mpsc, time::timeout};

use super::end::End;

/// Chunks a subscriber may be behind.
const BUFFER_CHUNKS: usize = 16;

/// How long a subscriber may take nothing while others wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a process wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// Its terminal.
    Terminal,
}

/// Something for subscribers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The process wrote.
    Data(Channel, Bytes),
    /// The process has ended; nothing follows.
    End(End),
}

/// The hub between a process and its subscribers.
#[derive(Debug)]
pub(super) struct Feed {
    state: Mutex<State>,
    patience: Duration,
}

#[derive(Debug, Default)]
struct State {
    subscribers: Vec<Subscriber>,
    next_id: u64,
    end: Option<End>,
}

#[derive(Clone, Debug)]
struct Subscriber {
    id: u64,
    sender: mpsc::Sender<Event>,
    /// The machine was resumed after it came.
    doubtful: bool,
}

/// A subscriber's end. Yields events; after [`Event::End`], or when it was dropped, nothing.
#[derive(Debug)]
pub(super) struct Subscription {
    receiver: mpsc::Receiver<Event>,
}

// === impl Feed ===

impl Default for Feed {
    fn default() -> Self {
        Self::with_patience(PATIENCE)
    }
}

impl Feed {
    /// A feed that drops a subscriber who keeps others waiting for that long.
    fn with_patience(patience: Duration) -> Self {
        Self { state: Mutex::default(), patience }
    }

    /// Joins in: events from now on. A process that has ended already yields only its end.
    pub(super) fn subscribe(&self) -> Subscription {
        let (sender, receiver) = mpsc::channel(BUFFER_CHUNKS);
        let mut state = self.lock();
        match state.end {
            // The channel is new and has room.
            Some(end) => drop(sender.try_send(Event::End(end))),
            None => {
                let id = state.next_id;
                state.next_id += 1;
                state.subscribers.push(Subscriber { id, sender, doubtful: false });
            }
        }
        Subscription { receiver }
    }

    /// Hands an event to every subscriber; returns when all have it.
    pub(super) async fn publish(&self, event: Event) {
        let mut waiting = Vec::new();
        {
            let mut state = self.lock();
            if state.end.is_some() {
                return;
            }
            state.subscribers.retain(|subscriber| match subscriber.sender.try_send(event.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    waiting.push(subscriber.clone());
                    true
                }
            });
        }
        join_all(waiting.into_iter().map(|subscriber| self.deliver(subscriber, event.clone()))).await;
    }

    /// Hands every subscriber the end and lets it go. Later subscribers get the end at once.
    pub(super) fn close(&self, end: End) {
        let subscribers = {
            let mut state = self.lock();
            state.end = Some(end);
            std::mem::take(&mut state.subscribers)
        };
        for Subscriber { sender, .. } in subscribers {
            if let Err(mpsc::error::TrySendError::Full(event)) = sender.try_send(Event::End(end)) {
                // It has to read what it has first; nobody else waits for that. The task ends with the stream.
                tokio::spawn(async move { sender.send(event).await });
            }
        }
    }

    /// The machine has been resumed: present subscribers are no longer waited for without limit.
    pub(super) fn doubt_subscribers(&self) {
        for subscriber in &mut self.lock().subscribers {
            subscriber.doubtful = true;
        }
    }

    /// Waits until the subscriber has room, as long as it may be waited for.
    async fn deliver(&self, subscriber: Subscriber, event: Event) {
        loop {
            match timeout(self.patience, subscriber.sender.reserve()).await {
                Ok(Ok(permit)) => {
                    permit.send(event);
                    return;
                }
                Ok(Err(_gone)) => {
                    self.lock().subscribers.retain(|other| other.id != subscriber.id);
                    return;
                }
                Err(_elapsed) => {
                    if self.drop_if_in_the_way(subscriber.id) {
                        return;
                    }
                }
            }
        }
    }

    fn drop_if_in_the_way(&self, id: u64) -> bool {
        let mut state = self.lock();
        let doubtful = state.subscribers.iter().any(|subscriber| subscriber.id == id && subscriber.doubtful);
        let in_the_way = doubtful || state.subscribers.len() > 1;
        if in_the_way {
            tracing::warn!("dropping a subscriber that has taken nothing for {:?}", self.patience);
            state.subscribers.retain(|subscriber| subscriber.id != id);
        }
        in_the_way
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Subscription ===

impl Subscription {
    /// The next event; `None` after the end, or when this subscriber was dropped.
    pub(super) async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn chunk(number: usize) -> Event {
        Event::Data(Channel::Stdout, Bytes::from(number.to_string()))
    }

    const END: Event = Event::End(End::Exited(0));
    const SHORT: Duration = Duration::from_millis(20);

    async fn all(mut subscription: Subscription) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = subscription.next().await {
            events.push(event);
        }
        events
    }

    #[tokio::test]
    async fn every_subscriber_gets_everything_in_order() {
        let feed = Arc::new(Feed::default());
        let readers: Vec<_> = (0..3).map(|_| tokio::spawn(all(feed.subscribe()))).collect();
        for number in 0..1000 {
            feed.publish(chunk(number)).await;
        }
        feed.close(End::Exited(0));
        let expected: Vec<_> = (0..1000).map(chunk).chain([END]).collect();
        for reader in readers {
            assert_eq!(reader.await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn without_subscribers_nothing_is_kept_and_nobody_waits() {
        let feed = Feed::default();
        for number in 0..1000 {
            feed.publish(chunk(number)).await;
        }
        assert_eq!(feed.lock().subscribers.len(), 0);
    }

    #[tokio::test]
    async fn whoever_comes_after_the_end_gets_the_end() {
        let feed = Feed::default();
        feed.close(End::Exited(3));
        assert_eq!(all(feed.subscribe()).await, [Event::End(End::Exited(3))]);
    }

    #[tokio::test]
    async fn a_subscriber_alone_may_be_slow_and_loses_nothing() {
        let feed = Arc::new(Feed::with_patience(SHORT));
        let mut slow = feed.subscribe();
        let writer = tokio::spawn({
            let feed = feed.clone();
            async move {
                for number in 0..30 {
                    feed.publish(chunk(number)).await;
                }
                feed.close(End::Exited(0));
            }
        });
        for number in 0..30 {
            tokio::time::sleep(SHORT * 3).await;
            assert_eq!(slow.next().await, Some(chunk(number)));
        }
        assert_eq!(slow.next().await, Some(END));
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_subscriber_that_never_reads_does_not_stop_the_others() {
        let feed = Arc::new(Feed::with_patience(SHORT));
        let mut stuck = feed.subscribe();
        let reader = tokio::spawn(all(feed.subscribe()));
        for number in 0..100 {
            feed.publish(chunk(number)).await;
        }
        feed.close(End::Exited(0));
        assert_eq!(reader.await.unwrap().len(), 101);
        let mut last = None;
        while let Some(event) = stuck.next().await {
            last = Some(event);
        }
        assert_ne!(last, Some(END), "a dropped subscriber must not believe it has seen the end");
    }

    #[tokio::test]
    async fn a_subscriber_from_before_a_resume_is_not_waited_for_for_ever() {
        let feed = Feed::with_patience(SHORT);
        let _gone = feed.subscribe();
        feed.doubt_subscribers();
        for number in 0..100 {
            feed.publish(chunk(number)).await;
        }
    }

    #[tokio::test]
    async fn a_subscriber_that_leaves_frees_the_process() {
        let feed = Arc::new(Feed::with_patience(SHORT));
        let leaving = feed.subscribe();
        for number in 0..BUFFER_CHUNKS {
            feed.publish(chunk(number)).await;
        }
        let blocked = tokio::spawn({
            let feed = feed.clone();
            async move { feed.publish(chunk(0)).await }
        });
        tokio::task::yield_now().await;
        drop(leaving);
        blocked.await.unwrap();
        assert_eq!(feed.lock().subscribers.len(), 0);
    }
}

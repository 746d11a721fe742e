//! Watchers whose events are fetched: for clients that cannot hold a stream open.
//!
//! Each watcher is an actor: it owns its watch and collects events until they are fetched. It ends when it is
//! removed. Its memory is bounded: a client that lets more than [`MAX_EVENTS`] pile up gets those, and after them an
//! error that says that later ones are lost; a new watcher is then needed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};
use torpor_envd_api::filesystem::{EventType, FilesystemEvent};

use super::{Watch, WatchOptions};
use crate::files::error::FileError;

/// How many events a watcher keeps; as many as the kernel's own queue by default.
const MAX_EVENTS: usize = 16_384;

/// How many watchers there may be.
const MAX_WATCHERS: usize = 1024;

/// Every watcher of the agent. A cheap handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watchers {
    watchers: Arc<Mutex<HashMap<String, mpsc::Sender<Fetch>>>>,
}

/// A request to a watcher: what has happened?
type Fetch = oneshot::Sender<Result<Vec<FilesystemEvent>, String>>;

/// The actor.
#[derive(Debug)]
struct Watcher {
    /// `None` once it has failed.
    watch: Option<Watch>,
    events: VecDeque<FilesystemEvent>,
    /// Why there are no more events than those.
    failure: Option<String>,
}

// === impl Watchers ===

impl Watchers {
    /// Starts a watcher and returns its id.
    pub(crate) async fn create(&self, options: WatchOptions) -> Result<String, FileError> {
        if self.lock().len() >= MAX_WATCHERS {
            return Err(FileError::Exhausted(format!("there are {MAX_WATCHERS} watchers; remove some")));
        }
        let watch = Watch::start(options).await?;
        let (sender, requests) = mpsc::channel(8);
        let watcher = Watcher { watch: Some(watch), events: VecDeque::new(), failure: None };
        let id = {
            let mut watchers = self.lock();
            let id = fresh_id(|id| watchers.contains_key(id))?;
            watchers.insert(id.clone(), sender);
            id
        };
        tokio::spawn(watcher.run(requests));
        Ok(id)
    }

    /// Everything that has happened since the last call, each event once.
    pub(crate) async fn fetch(&self, id: &str) -> Result<Vec<FilesystemEvent>, FileError> {
        let missing = || FileError::NoWatcher(id.to_owned());
        let watcher = self.lock().get(id).cloned().ok_or_else(missing)?;
        let (reply, answer) = oneshot::channel();
        watcher.send(reply).await.map_err(|_| missing())?;
        answer.await.map_err(|_| missing())?.map_err(FileError::EventsLost)
    }

    /// Ends a watcher.
    pub(crate) fn remove(&self, id: &str) -> Result<(), FileError> {
        // Dropping the last sender ends the actor.
        self.lock().remove(id).map(drop).ok_or_else(|| FileError::NoWatcher(id.to_owned()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, mpsc::Sender<Fetch>>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id that is not taken. From the kernel's randomness each time, so that two sandboxes continued from one snapshot
/// do not go on with the same ids.
fn fresh_id(taken: impl Fn(&str) -> bool) -> Result<String, FileError> {
    loop {
        let mut bytes = [0_u8; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| FileError::Internal(format!("no random bytes: {errno}")))?;
        let id = format!("w{:016x}", u64::from_ne_bytes(bytes));
        if !taken(&id) {
            return Ok(id);
        }
    }
}

// === impl Watcher ===

impl Watcher {
    async fn run(mut self, mut requests: mpsc::Receiver<Fetch>) {
        loop {
            let event = async {
                match &mut self.watch {
                    Some(watch) => watch.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(reply) => {
                        self.catch_up().await;
                        // A client that is gone leaves its events to the next one that asks.
                        if !reply.is_closed() {
                            let _ = reply.send(self.take());
                        }
                    }
                    None => return,
                },
                event = event => self.collect(event),
            }
        }
    }

    /// Collects what the kernel has reported by now.
    async fn catch_up(&mut self) {
        while let Some(watch) = &mut self.watch {
            match watch.next_now().await {
                Ok(None) => return,
                Ok(Some(event)) => self.collect(Ok(event)),
                Err(error) => self.collect(Err(error)),
            }
        }
    }

    fn collect(&mut self, event: Result<FilesystemEvent, FileError>) {
        match event {
            Ok(event) => {
                // A long write is one event, however many pieces it has.
                if let Some(last) = self.events.back_mut()
                    && event.r#type == EventType::EVENT_TYPE_WRITE
                    && (&last.name, last.r#type) == (&event.name, event.r#type)
                {
                    *last = event;
                } else if self.events.len() < MAX_EVENTS {
                    self.events.push_back(event);
                } else {
                    self.fail(format!(
                        "more than {MAX_EVENTS} events were not fetched; later ones are lost, create a new watcher"
                    ));
                }
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn fail(&mut self, failure: String) {
        self.failure = Some(failure);
        self.watch = None;
    }

    fn take(&mut self) -> Result<Vec<FilesystemEvent>, String> {
        match &self.failure {
            Some(failure) if self.events.is_empty() => Err(failure.clone()),
            _ => Ok(std::mem::take(&mut self.events).into()),
        }
    }
}

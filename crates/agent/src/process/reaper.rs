//! Waiting for processes that have ended.
//!
//! As PID 1 the agent inherits every orphan of the sandbox and has to wait for it, or it stays a zombie. Waiting
//! for *any* child would steal the exit statuses of those the agent started itself; so this is the one place that
//! waits, for all, and hands each status to its owner. Nothing else in the agent may start processes.
//!
//! A process id is only known once the process exists, and by then it may have ended. So statuses that arrive while
//! a start is under way are kept until that start has asked for its own.
//!
//! An id stays the process's own until it is waited for. Signals go through [`Reaper::signal`], which holds off the
//! waiting meanwhile, so they never hit a stranger that got the same id.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, WaitOptions, wait};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{end::End, session};

/// Waits for every child of this process. Cheap to share.
#[derive(Debug, Default)]
pub struct Reaper {
    children: Mutex<Children>,
}

#[derive(Debug, Default)]
struct Children {
    /// Those started through [`Reaper::start`] that have not been waited for.
    owned: HashMap<Pid, oneshot::Sender<End>>,
    /// How many starts are under way.
    starting: usize,
    /// How children ended that nobody owned while a start was under way.
    unclaimed: HashMap<Pid, End>,
}

/// Who is to get a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The process's group: itself and the descendants that did not form groups of their own.
    Group,
    /// The process's session: also those that did, as the jobs of an interactive shell do.
    Session,
}

// === impl Reaper ===

impl Reaper {
    /// Starts to wait. Must be called within a Tokio runtime, and once in a process.
    pub fn run() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let mut ended = signal(SignalKind::child())?;
        let this = reaper.clone();
        tokio::spawn(async move {
            loop {
                // Several signals may arrive as one, and some before the first wait: wait for all there are.
                this.reap();
                if ended.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a process, and returns its id and how it will have ended. `start` may block.
    pub(crate) fn start(
        &self,
        start: impl FnOnce() -> io::Result<Pid>,
    ) -> io::Result<(Pid, oneshot::Receiver<End>)> {
        self.lock().starting += 1;
        let started = start();
        let mut children = self.lock();
        children.starting -= 1;
        let claimed = started.as_ref().ok().and_then(|pid| children.unclaimed.remove(pid));
        if children.starting == 0 {
            children.unclaimed.clear();
        }
        let pid = started?;
        let (sender, receiver) = oneshot::channel();
        match claimed {
            // Nobody waits yet, so the message has to be accepted.
            Some(end) => drop(sender.send(end)),
            None => drop(children.owned.insert(pid, sender)),
        }
        Ok((pid, receiver))
    }

    /// Sends a signal to a process that was started here; `false` when it is gone.
    pub(crate) fn signal(&self, pid: Pid, signal: Signal, reach: Reach) -> bool {
        let children = self.lock();
        if !children.owned.contains_key(&pid) {
            return false;
        }
        if let Err(error) = rustix::process::kill_process_group(pid, signal) {
            tracing::debug!(%error, pid = pid.as_raw_nonzero(), "signal");
        }
        if reach == Reach::Session {
            session::signal(pid, signal);
        }
        true
    }

    fn reap(&self) {
        let mut children = self.lock();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let end = End::from_status(status);
            match children.owned.remove(&pid) {
                // The owner may have lost interest.
                Some(owner) => drop(owner.send(end)),
                None if children.starting > 0 => drop(children.unclaimed.insert(pid, end)),
                None => tracing::trace!(pid = pid.as_raw_nonzero(), %end, "orphan"),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

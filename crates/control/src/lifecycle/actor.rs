//! The actor: it alone changes the state of its sandbox.
//!
//! Commands are taken one after the other. A command that arrived while a pause (or a resume) was under way, and that
//! asks for just that, *joins* it: it gets the same answer instead of a conflict.
//!
//! This file has the actor, its loop and what it publishes; its modules have what it does: [`create`], [`pause`],
//! [`resume`], [`snapshot`], [`network`], [`end`].

mod create;
mod end;
mod network;
mod pause;
mod resume;
mod snapshot;

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use torpor_machine::Machine;
use torpor_types::{Egress, MachineId, SnapshotId};
use tracing::Instrument;

use super::api::{Connected, LifecycleError, OnTimeout, SandboxView};
use super::bases::Base;
use super::guest::{self, InitError};
use super::idle::Activity;
use super::node::Node;
use super::save::{Keep, SaveError, Saving};
use super::{Entries, Entry, Route, Status};
use crate::registry::{SandboxRow, StoredState};
use crate::telemetry::Recording;

pub(super) use create::{ROOM_BYTES, create, start};

/// Commands waiting for one actor; more make their callers wait.
const INBOX: usize = 64;

/// A command, when it arrived, and the request it belongs to.
pub(super) struct Command {
    pub(super) arrived: Instant,
    pub(super) span: tracing::Span,
    pub(super) operation: Operation,
}

type Reply<T> = oneshot::Sender<Result<T, LifecycleError>>;

/// What can be asked of a sandbox.
pub(super) enum Operation {
    Pause {
        keep_memory: bool,
        wait_durable: bool,
        reply: Reply<()>,
    },
    Snapshot {
        keep: Keep,
        /// The owner's record in the manifest.
        subject: serde_json::Value,
        reply: Reply<Base>,
    },
    Resume {
        resume: Resume,
        reply: Reply<(SandboxView, Connected)>,
    },
    /// Traffic for a sandbox that it resumes.
    Wake {
        reply: Reply<()>,
    },
    SetTimeout {
        timeout_s: i64,
        reply: Reply<()>,
    },
    Refresh {
        duration_s: i64,
        reply: Reply<()>,
    },
    SetEgress {
        egress: Box<Egress>,
        allow_internet: bool,
        reply: Reply<()>,
    },
    Kill {
        reply: Reply<()>,
    },
    /// Destroy it if it is still paused, since then. Answers whether it was.
    Forget {
        paused_at: Timestamp,
        reply: Reply<bool>,
    },
}

/// How to resume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resume {
    /// Seconds to live from then on.
    pub(super) timeout_s: i64,
    /// What happens then, if it is to change.
    pub(super) on_timeout: Option<OnTimeout>,
    /// Whether it is an error that it runs.
    pub(super) must_be_paused: bool,
    /// False: boot, whatever the pause kept.
    pub(super) keep_memory: bool,
}

/// What happens beside the commands.
pub(super) enum Event {
    /// A machine's process ended without our doing.
    MachineExited(MachineId),
    /// A guest went on that stood still although nobody stopped it.
    StoodStill(MachineId),
    /// The agent of a machine that was let run knows who it is, or does not answer; `epoch` tells of which run.
    Awake { epoch: u64, result: Result<(), InitError> },
    /// A save ended; `epoch` tells whether it is still wanted.
    Saved { epoch: u64, result: Result<SnapshotId, SaveError> },
}

/// What carries the sandbox at the moment.
pub(super) enum Carrier {
    /// Nothing: it is paused and on disk.
    Nothing,
    /// A machine that runs; `awake` when its agent knows who it is, and traffic may reach it.
    Running { machine: Machine, closed: CancellationToken, awake: bool },
    /// A machine that is stopped and whose pause is being saved.
    Stopped { machine: Machine, saving: Saving, waiters: Vec<Reply<()>> },
}

/// A span of time in which an operation was under way.
struct Window {
    started: Instant,
    ended: Instant,
}

pub(super) struct Actor {
    node: Arc<Node>,
    entries: Entries,
    row: SandboxRow,
    carrier: Carrier,
    /// The snapshot the carrier stands on.
    base: Option<Base>,
    /// Names the present run to the agent.
    lifecycle_id: String,
    /// Of the run that is under way, from when its agent answered.
    recording: Option<Recording>,
    status: watch::Sender<Status>,
    inbox: mpsc::Receiver<Box<Command>>,
    events: mpsc::UnboundedSender<Event>,
    inbound: mpsc::UnboundedReceiver<Event>,
    /// Counts runs and saves, so that the result of one that was overtaken is told from the one that is wanted.
    epoch: u64,
    /// Saves whose result has not come yet, the overtaken ones among them.
    saves_under_way: usize,
    copying: bool,
    last_pause: Option<Window>,
    last_resume: Option<Window>,
    retry_expiry_at: Option<tokio::time::Instant>,
    /// What is done in the present run.
    activity: Arc<Activity>,
    /// When to look whether it is idle.
    look_at: Option<tokio::time::Instant>,
    /// Why the last attempt to pause it by itself failed.
    held_up: Option<String>,
}

/// What made the actor act.
enum Turn {
    /// `None`: nobody can send commands any more.
    Command(Option<Box<Command>>),
    Event(Event),
    Expired,
    /// It may be idle.
    Look,
}

/// Whether the actor goes on.
enum Next {
    Continue,
    Ended,
}

// === impl Carrier ===

impl Carrier {
    /// A machine that was just let run.
    pub(super) fn running(machine: Machine) -> Carrier {
        Carrier::Running { machine, closed: CancellationToken::new(), awake: false }
    }
}

// === impl Window ===

impl Window {
    fn since(started: Instant) -> Window {
        Window { started, ended: Instant::now() }
    }

    fn contains(window: &Option<Window>, moment: Instant) -> bool {
        window.as_ref().is_some_and(|w| (w.started..=w.ended).contains(&moment))
    }
}

// === impl Actor ===

impl Actor {
    /// Starts the actor of a sandbox that is in a settled state, and makes the sandbox known.
    ///
    /// `base` is the snapshot that the machine of `carrier` stands on.
    pub(super) fn spawn(
        node: Arc<Node>,
        entries: Entries,
        row: SandboxRow,
        carrier: Carrier,
        base: Option<Base>,
    ) -> Status {
        let (commands, inbox) = mpsc::channel(INBOX);
        let (events, inbound) = mpsc::unbounded_channel();
        let first = Status {
            row: Arc::new(row.clone()),
            route: None,
            durable: true,
            copying: false,
            held_up: None,
            gone: false,
        };
        let (status, watcher) = watch::channel(first);
        let mut actor = Actor {
            node,
            entries: entries.clone(),
            row,
            carrier,
            base,
            lifecycle_id: guest::new_lifecycle_id(),
            recording: None,
            status,
            inbox,
            events,
            inbound,
            epoch: 0,
            saves_under_way: 0,
            copying: false,
            last_pause: None,
            last_resume: None,
            retry_expiry_at: None,
            activity: Arc::new(Activity::new()),
            look_at: None,
            held_up: None,
        };
        if let Carrier::Running { machine, .. } | Carrier::Stopped { machine, .. } = &actor.carrier {
            actor.watch_exit(machine);
        }
        actor.publish();
        let published = watcher.borrow().clone();
        let mut map = entries.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        map.insert(actor.row.id.clone(), Entry { commands, status: watcher });
        drop(map);
        let span = tracing::info_span!("sandbox", id = %actor.row.id);
        tokio::spawn(actor.run().instrument(span));
        published
    }

    async fn run(mut self) {
        match self.carrier {
            Carrier::Nothing => {}
            Carrier::Running { .. } => self.start_waking(),
            Carrier::Stopped { .. } => self.restart_saving(),
        }
        loop {
            let (expires_at, look_at) = (self.expires_at(), self.look_at());
            let turn = tokio::select! {
                command = self.inbox.recv() => Turn::Command(command),
                Some(event) = self.inbound.recv() => Turn::Event(event),
                () = sleep_until(expires_at) => Turn::Expired,
                () = sleep_until(look_at) => Turn::Look,
            };
            let next = match turn {
                // In boxes: the tasks of a thousand paused sandboxes wait here, and each would be as large as the largest
                // of these.
                Turn::Command(Some(command)) => {
                    let Command { arrived, span, operation } = *command;
                    Box::pin(self.handle(arrived, operation).instrument(span)).await
                }
                Turn::Command(None) => Next::Ended,
                Turn::Event(event) => Box::pin(self.react(event)).await,
                Turn::Expired => Box::pin(self.expire()).await,
                Turn::Look => Box::pin(self.look_whether_idle()).await,
            };
            if let Next::Ended = next {
                return;
            }
        }
    }

    async fn handle(&mut self, arrived: Instant, operation: Operation) -> Next {
        match operation {
            Operation::Snapshot { keep, subject, reply } => return self.snapshot(keep, subject, reply).await,
            Operation::Pause { keep_memory, wait_durable, reply } => {
                let outcome = self.pause_or_join(arrived, keep_memory).await;
                match outcome {
                    Ok(()) if wait_durable => self.answer_when_durable(reply),
                    outcome => answer(reply, outcome),
                }
            }
            Operation::Resume { resume, reply } => {
                let outcome = self.resume_or_join(arrived, resume).await;
                answer(reply, outcome.map(|how| (self.status.borrow().view(&self.node), how)));
            }
            Operation::Wake { reply } => answer(reply, self.wake(arrived).await),
            Operation::SetTimeout { timeout_s, reply } => {
                answer(reply, self.set_timeout(timeout_s).await);
            }
            Operation::Refresh { duration_s, reply } => {
                answer(reply, self.refresh(duration_s).await);
            }
            Operation::SetEgress { egress, allow_internet, reply } => {
                let outcome = self.set_egress(*egress, allow_internet).await;
                answer(reply, outcome);
            }
            Operation::Kill { reply } => {
                let outcome = self.kill().await;
                let next = if outcome.is_ok() { Next::Ended } else { Next::Continue };
                answer(reply, outcome);
                return next;
            }
            Operation::Forget { paused_at, reply } => {
                let outcome = self.forget(paused_at).await;
                let next = if matches!(outcome, Ok(true)) { Next::Ended } else { Next::Continue };
                answer(reply, outcome);
                return next;
            }
        }
        Next::Continue
    }

    async fn react(&mut self, event: Event) -> Next {
        match event {
            Event::MachineExited(id) => self.machine_ended(&id, None).await,
            Event::StoodStill(id) => {
                if let Carrier::Running { machine, awake: true, .. } = &self.carrier
                    && *machine.id() == id
                {
                    self.tell_time(&machine.clone());
                }
                Next::Continue
            }
            Event::Awake { epoch, result } => self.woken(epoch, result).await,
            Event::Saved { epoch, result } => {
                self.saved(epoch, result).await;
                Next::Continue
            }
        }
    }

    /// Waits for saves that were cancelled too late, and removes what they published.
    async fn remove_saves_under_way(&mut self) {
        while self.saves_under_way > 0 {
            if let Some(Event::Saved { result, .. }) = self.inbound.recv().await {
                self.saves_under_way -= 1;
                if let Ok(unwanted) = result {
                    self.remove_snapshot(unwanted).await;
                }
            }
        }
    }

    async fn remove_snapshot(&self, id: SnapshotId) {
        self.node.bases.release(id).await;
    }

    /// Writes the row, which the database has in state `expected`.
    async fn record(&self, expected: StoredState) -> Result<(), crate::registry::RegistryError> {
        if !self.node.registry.update_sandbox(&self.row, expected).await? {
            tracing::error!(?expected, state = ?self.row.state, "the database holds another state than expected");
        }
        Ok(())
    }

    fn publish(&mut self) {
        if let Carrier::Nothing = self.carrier
            && self.row.state != StoredState::Resuming
        {
            self.base = None;
        }
        let (route, durable) = match &self.carrier {
            Carrier::Running { machine, closed, awake: true } if self.row.state == StoredState::Running => {
                let route = Route {
                    connector: machine.connector(),
                    https_ports: self.row.record.network.ingress.https_ports.clone(),
                    closed: closed.clone(),
                    traffic: self.activity.traffic().clone(),
                };
                (Some(route), true)
            }
            Carrier::Stopped { .. } => (None, false),
            Carrier::Running { .. } | Carrier::Nothing => (None, true),
        };
        if self.row.state == StoredState::Paused {
            // The next run has a deadline of its own.
            (self.held_up, self.retry_expiry_at) = (None, None);
        }
        let (row, held_up) = (Arc::new(self.row.clone()), self.held_up.clone());
        self.status.send_replace(Status { row, route, durable, copying: self.copying, held_up, gone: false });
    }

    fn watch_exit(&self, machine: &Machine) {
        self.watch_still_stand(machine);
        let (machine, events) = (machine.clone(), self.events.clone());
        tokio::spawn(async move {
            machine.exited().await;
            // The actor may be gone, and the machine with it.
            let _ = events.send(Event::MachineExited(machine.id().clone()));
        });
    }

    fn watch_still_stand(&self, machine: &Machine) {
        let (mut stood_still, id, events) =
            (machine.stood_still(), machine.id().clone(), self.events.clone());
        tokio::spawn(async move {
            // Ends with the machine, or with the actor.
            while stood_still.changed().await.is_ok() {
                if events.send(Event::StoodStill(id.clone())).is_err() {
                    return;
                }
            }
        });
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

fn answer<T>(reply: Reply<T>, outcome: Result<T, LifecycleError>) {
    // Whoever asked may have stopped waiting; the operation stands all the same.
    let _ = reply.send(outcome);
}

async fn sleep_until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

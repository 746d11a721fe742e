//! The actor: it alone changes the state of its sandbox.
//!
//! Commands are taken one after the other. A command that arrived while a pause (or a resume) was under way, and that
//! asks for just that, *joins* it: it gets the same answer instead of a conflict.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use torpor_machine::Machine;
use torpor_types::{MachineId, SandboxId, SnapshotId, TeamId};
use tracing::Instrument;

use super::api::{Connected, CreateSandbox, LifecycleError, OnTimeout, SandboxView};
use super::guest::{self, InitError};
use super::node::Node;
use super::save::{SaveError, Saving};
use super::{Entries, Entry, Route, Status, deadline, launch};
use crate::registry::{SandboxRecord, SandboxRow, StoredState};

/// Commands waiting for one actor; more make their callers wait.
const INBOX: usize = 64;

/// How long an automatic pause that was refused waits before it is tried again.
const RETRY_AUTOMATIC_PAUSE: Duration = Duration::from_secs(15);

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
        wait_durable: bool,
        reply: Reply<()>,
    },
    Resume {
        timeout_s: i64,
        on_timeout: Option<OnTimeout>,
        must_be_paused: bool,
        reply: Reply<(SandboxView, Connected)>,
    },
    SetTimeout {
        timeout_s: i64,
        reply: Reply<()>,
    },
    Refresh {
        duration_s: i64,
        reply: Reply<()>,
    },
    Kill {
        reply: Reply<()>,
    },
}

/// What happens beside the commands.
pub(super) enum Event {
    /// A machine's process ended without our doing.
    MachineExited(MachineId),
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
    status: watch::Sender<Status>,
    inbox: mpsc::Receiver<Command>,
    events: mpsc::UnboundedSender<Event>,
    inbound: mpsc::UnboundedReceiver<Event>,
    /// Counts runs and saves, so that the result of one that was overtaken is told from the one that is wanted.
    epoch: u64,
    /// Saves whose result has not come yet, the overtaken ones among them.
    saves_under_way: usize,
    last_pause: Option<Window>,
    last_resume: Option<Window>,
    retry_expiry_at: Option<tokio::time::Instant>,
}

/// What made the actor act.
enum Turn {
    /// `None`: nobody can send commands any more.
    Command(Option<Command>),
    Event(Event),
    Expired,
}

/// Whether the actor goes on.
enum Next {
    Continue,
    Ended,
}

/// Makes a new sandbox, from the request to a running machine with an actor of its own.
pub(super) async fn create(
    node: &Arc<Node>,
    entries: &Entries,
    team: TeamId,
    request: CreateSandbox,
) -> Result<Status, LifecycleError> {
    deadline::check_timeout(request.timeout_s, node.max_timeout_s)?;
    let template = node.template(&request.template).await?;
    node.require_room(0)?;
    let now = Timestamp::now();
    let row = SandboxRow {
        id: SandboxId::random(),
        team_id: team,
        state: StoredState::Creating,
        machine_id: None,
        snapshot_id: None,
        record: SandboxRecord {
            template_id: template.id,
            template_name: template.name,
            shape: template.shape,
            envd_version: template.envd_version,
            started_at: now,
            end_at: deadline::after(now, request.timeout_s),
            pause_on_timeout: request.on_timeout == OnTimeout::Pause,
            auto_resume: request.auto_resume,
            secure: request.secure,
            allow_internet: request.allow_internet,
            metadata: request.metadata,
            env_vars: request.env_vars,
        },
    };
    // The intent is recorded while the machine is being made: one without the other is cleared away by reconciliation.
    let (recorded, launched) =
        tokio::join!(node.registry.insert_sandbox(&row), launch::launch(node, &row, &template.snapshot_id),);
    let machine = match (recorded, launched) {
        (Ok(()), Ok(machine)) => machine,
        (recorded, launched) => {
            if let Ok(machine) = launched.as_ref() {
                machine.destroy().await;
            }
            node.registry.delete_sandbox(&row.id).await?;
            recorded?;
            return Err(launched.err().map_or(LifecycleError::ShuttingDown, LifecycleError::from));
        }
    };
    let mut running = row;
    running.state = StoredState::Running;
    running.machine_id = Some(machine.id().clone());
    let now = Timestamp::now();
    running.record.started_at = now;
    running.record.end_at = deadline::after(now, request.timeout_s);
    if let Err(error) = node.registry.update_sandbox(&running, StoredState::Creating).await {
        machine.destroy().await;
        return Err(error.into());
    }
    Ok(Actor::spawn(node.clone(), entries.clone(), running, Carrier::running(machine)))
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
    pub(super) fn spawn(node: Arc<Node>, entries: Entries, row: SandboxRow, carrier: Carrier) -> Status {
        let (commands, inbox) = mpsc::channel(INBOX);
        let (events, inbound) = mpsc::unbounded_channel();
        let first = Status { row: Arc::new(row.clone()), route: None, durable: true, gone: false };
        let (status, watcher) = watch::channel(first);
        let actor = Actor {
            node,
            entries: entries.clone(),
            row,
            carrier,
            status,
            inbox,
            events,
            inbound,
            epoch: 0,
            saves_under_way: 0,
            last_pause: None,
            last_resume: None,
            retry_expiry_at: None,
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
            let expires_at = self.expires_at();
            let turn = tokio::select! {
                command = self.inbox.recv() => Turn::Command(command),
                Some(event) = self.inbound.recv() => Turn::Event(event),
                () = sleep_until(expires_at) => Turn::Expired,
            };
            let next = match turn {
                Turn::Command(Some(Command { arrived, span, operation })) => {
                    self.handle(arrived, operation).instrument(span).await
                }
                Turn::Command(None) => Next::Ended,
                Turn::Event(event) => self.react(event).await,
                Turn::Expired => self.expire().await,
            };
            if let Next::Ended = next {
                return;
            }
        }
    }

    async fn handle(&mut self, arrived: Instant, operation: Operation) -> Next {
        match operation {
            Operation::Pause { wait_durable, reply } => {
                let outcome = self.pause_or_join(arrived).await;
                match outcome {
                    Ok(()) if wait_durable => self.answer_when_durable(reply),
                    outcome => answer(reply, outcome),
                }
            }
            Operation::Resume { timeout_s, on_timeout, must_be_paused, reply } => {
                let outcome = self.resume_or_join(arrived, timeout_s, on_timeout, must_be_paused).await;
                answer(reply, outcome.map(|how| (self.status.borrow().view(&self.node), how)));
            }
            Operation::SetTimeout { timeout_s, reply } => {
                let new_end = match self.row.state {
                    StoredState::Running => {
                        deadline::set(&self.row.record, Timestamp::now(), timeout_s, self.node.max_timeout_s)
                    }
                    _ => Err(LifecycleError::NotFound(self.row.id.clone())),
                };
                let outcome = match new_end {
                    Ok(end_at) => self.move_deadline(end_at).await,
                    Err(refusal) => Err(refusal),
                };
                answer(reply, outcome);
            }
            Operation::Refresh { duration_s, reply } => {
                let outcome = if self.row.state == StoredState::Running {
                    let max = self.node.max_timeout_s;
                    let end_at = deadline::refresh(&self.row.record, Timestamp::now(), duration_s, max);
                    self.move_deadline(end_at).await
                } else {
                    Err(LifecycleError::NotFound(self.row.id.clone()))
                };
                answer(reply, outcome);
            }
            Operation::Kill { reply } => {
                let outcome = self.kill().await;
                let next = if outcome.is_ok() { Next::Ended } else { Next::Continue };
                answer(reply, outcome);
                return next;
            }
        }
        Next::Continue
    }

    async fn react(&mut self, event: Event) -> Next {
        match event {
            Event::MachineExited(id) => self.machine_ended(&id, None).await,
            Event::Awake { epoch, result } => self.woken(epoch, result).await,
            Event::Saved { epoch, result } => {
                self.saves_under_way -= 1;
                match result {
                    result if epoch == self.epoch => self.finish_pause(result).await,
                    // Overtaken by a resume: the machine runs on from the snapshot it had.
                    Ok(unwanted) => self.remove_snapshot(unwanted).await,
                    Err(_) => {}
                }
                Next::Continue
            }
        }
    }

    // --- pause ---

    async fn pause_or_join(&mut self, arrived: Instant) -> Result<(), LifecycleError> {
        if self.row.state == StoredState::Paused && Window::contains(&self.last_pause, arrived) {
            return Ok(());
        }
        let started = Instant::now();
        let outcome = self.pause().await;
        if outcome.is_ok() {
            self.last_pause = Some(Window::since(started));
        }
        outcome
    }

    /// Stops the machine, captures its state, and starts to save it. On an error the sandbox runs on.
    #[tracing::instrument(name = "sandbox.pause", skip_all)]
    async fn pause(&mut self) -> Result<(), LifecycleError> {
        let (machine, closed) = match &self.carrier {
            Carrier::Running { machine, closed, .. } => (machine.clone(), closed.clone()),
            Carrier::Nothing | Carrier::Stopped { .. } => {
                return Err(LifecycleError::AlreadyPaused(self.row.id.clone()));
            }
        };
        self.node.require_room(machine.private_bytes())?;
        let before = self.row.clone();
        self.row.state = StoredState::Pausing;
        self.publish();
        // Stopping can be taken back, so the intent is written while the machine stops.
        let (recorded, captured) = tokio::join!(
            self.node.registry.update_sandbox(&self.row, StoredState::Running),
            machine.stop_and_capture(),
        );
        let state = match (recorded, captured) {
            (Ok(_), Ok(state)) => state,
            (recorded, captured) => {
                let what = "The sandbox could not be paused";
                if let Err(error) = machine.cont().await {
                    tracing::error!(%error, "a machine that could not be paused does not run on either");
                }
                self.row = before;
                self.record(StoredState::Pausing).await?;
                recorded?;
                return Err(LifecycleError::Failed {
                    what,
                    why: captured.map_or_else(|error| chain(&error), |_| String::new()),
                });
            }
        };
        closed.cancel();
        self.row.state = StoredState::Paused;
        self.row.record.end_at = Timestamp::now();
        // From here on it is paused, whatever the database says of it: reconciliation comes to the same.
        if let Err(error) = self.record(StoredState::Pausing).await {
            tracing::error!(%error, "the pause could not be recorded");
        }
        let saving = self.start_saving(&machine, Some(state));
        self.carrier = Carrier::Stopped { machine, saving, waiters: Vec::new() };
        self.publish();
        Ok(())
    }

    fn start_saving(&mut self, machine: &Machine, state: Option<torpor_machine::DeviceState>) -> Saving {
        self.epoch += 1;
        self.saves_under_way += 1;
        Saving::start(
            self.node.clone(),
            self.row.clone(),
            machine.clone(),
            state,
            self.epoch,
            self.events.clone(),
        )
    }

    fn restart_saving(&mut self) {
        if let Carrier::Stopped { machine, waiters, .. } =
            std::mem::replace(&mut self.carrier, Carrier::Nothing)
        {
            let saving = self.start_saving(&machine, None);
            self.carrier = Carrier::Stopped { machine, saving, waiters };
            self.publish();
        }
    }

    fn answer_when_durable(&mut self, reply: Reply<()>) {
        match &mut self.carrier {
            Carrier::Stopped { waiters, .. } => waiters.push(reply),
            Carrier::Nothing | Carrier::Running { .. } => answer(reply, Ok(())),
        }
    }

    /// The save ended: make its snapshot the sandbox's, let go of the machine and of the snapshot before.
    async fn finish_pause(&mut self, result: Result<SnapshotId, SaveError>) {
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::error!(%error, "a pause is not durable yet; its machine is kept and saving is tried again");
                self.retry_saving(error);
                return;
            }
        };
        let previous = self.row.snapshot_id.replace(snapshot.clone());
        let machine_id = self.row.machine_id.take();
        if let Err(error) = self.record(StoredState::Paused).await {
            // The machine goes on being the pause, and saving starts over.
            tracing::error!(%error, "a durable pause could not be recorded");
            self.remove_snapshot(snapshot).await;
            self.row.snapshot_id = previous;
            self.row.machine_id = machine_id;
            self.retry_saving(SaveError::Registry(error));
            return;
        }
        if let Carrier::Stopped { machine, waiters, .. } =
            std::mem::replace(&mut self.carrier, Carrier::Nothing)
        {
            machine.destroy().await;
            for waiter in waiters {
                answer(waiter, Ok(()));
            }
        }
        self.publish();
        if let Some(previous) = previous {
            self.remove_snapshot(previous).await;
        }
    }

    /// Saving failed: whoever waits for durability is told, and it is tried again later.
    fn retry_saving(&mut self, error: SaveError) {
        self.epoch += 1;
        let (epoch, events) = (self.epoch, self.events.clone());
        if let Carrier::Stopped { machine, saving, waiters } = &mut self.carrier {
            for waiter in waiters.drain(..) {
                let what = "The sandbox is paused but could not be saved yet";
                answer(waiter, Err(LifecycleError::Failed { what, why: chain(&error) }));
            }
            self.saves_under_way += 1;
            *saving = Saving::retry(self.node.clone(), self.row.clone(), machine.clone(), epoch, events);
        }
    }

    // --- wake ---

    /// Tells the agent of the machine that was let run who it is and what time it is; traffic waits until it knows.
    /// The answer to create and resume does not: an agent that just woke up under emulation takes its time.
    fn start_waking(&mut self) {
        self.epoch += 1;
        let Carrier::Running { machine, .. } = &self.carrier else { return };
        let (epoch, events, connector) = (self.epoch, self.events.clone(), machine.connector());
        let (row, token) = (self.row.clone(), self.node.access_token(&self.row));
        let waking = async move {
            let result = guest::init(&connector, &row.id, &row.record, token).await;
            // An actor that ended wants no result.
            let _ = events.send(Event::Awake { epoch, result });
        };
        tokio::spawn(waking.in_current_span());
    }

    async fn woken(&mut self, epoch: u64, result: Result<(), InitError>) -> Next {
        let Carrier::Running { machine, awake, .. } = &mut self.carrier else { return Next::Continue };
        if epoch != self.epoch {
            return Next::Continue;
        }
        match result {
            Ok(()) => {
                *awake = true;
                self.publish();
                Next::Continue
            }
            Err(error) => {
                let id = machine.id().clone();
                self.machine_ended(&id, Some(chain(&error))).await
            }
        }
    }

    // --- resume ---

    async fn resume_or_join(
        &mut self,
        arrived: Instant,
        timeout_s: i64,
        on_timeout: Option<OnTimeout>,
        must_be_paused: bool,
    ) -> Result<Connected, LifecycleError> {
        if self.row.state == StoredState::Running {
            let joined = Window::contains(&self.last_resume, arrived);
            if must_be_paused && !joined {
                return Err(LifecycleError::AlreadyRunning(self.row.id.clone()));
            }
            let max = self.node.max_timeout_s;
            let end_at = deadline::extend(&self.row.record, Timestamp::now(), timeout_s, max);
            self.move_deadline(end_at).await?;
            return Ok(if joined { Connected::Resumed } else { Connected::AlreadyRunning });
        }
        let started = Instant::now();
        self.resume(timeout_s, on_timeout).await?;
        self.last_resume = Some(Window::since(started));
        Ok(Connected::Resumed)
    }

    /// Makes the paused sandbox run: in its stopped machine while that is kept, else in a new one from its snapshot.
    #[tracing::instrument(name = "sandbox.resume", skip_all)]
    async fn resume(&mut self, timeout_s: i64, on_timeout: Option<OnTimeout>) -> Result<(), LifecycleError> {
        let mut running = self.row.clone();
        running.state = StoredState::Running;
        if let Some(on_timeout) = on_timeout {
            running.record.pause_on_timeout = on_timeout == OnTimeout::Pause;
        }
        let machine = match std::mem::replace(&mut self.carrier, Carrier::Nothing) {
            Carrier::Stopped { machine, saving, waiters } => {
                saving.cancel();
                self.epoch += 1;
                for waiter in waiters {
                    answer(waiter, Err(LifecycleError::InTransition(self.row.id.clone())));
                }
                match machine.cont().await {
                    Ok(()) => machine,
                    Err(error) => {
                        // It may have run for a moment; the save captures it anew.
                        let saving = self.start_saving(&machine, None);
                        self.carrier = Carrier::Stopped { machine, saving, waiters: Vec::new() };
                        let what = "The sandbox could not be resumed";
                        return Err(LifecycleError::Failed { what, why: chain(&error) });
                    }
                }
            }
            Carrier::Nothing => {
                let Some(snapshot) = self.row.snapshot_id.clone() else {
                    return Err(LifecycleError::Failed {
                        what: "The sandbox could not be resumed",
                        why: "it has no snapshot".to_owned(),
                    });
                };
                self.resume_from(&snapshot).await?
            }
            running @ Carrier::Running { .. } => {
                self.carrier = running;
                return Err(LifecycleError::AlreadyRunning(self.row.id.clone()));
            }
        };
        let before = self.row.state;
        running.machine_id = Some(machine.id().clone());
        running.record.started_at = Timestamp::now();
        running.record.end_at = deadline::after(running.record.started_at, timeout_s);
        self.row = running;
        self.carrier = Carrier::running(machine);
        self.start_waking();
        // It runs: a database that cannot say so now is brought in line by reconciliation.
        if let Err(error) = self.record(before).await {
            tracing::error!(%error, "the resume could not be recorded");
        }
        self.publish();
        Ok(())
    }

    async fn resume_from(&mut self, snapshot: &SnapshotId) -> Result<Machine, LifecycleError> {
        self.node.require_room(0)?;
        self.row.state = StoredState::Resuming;
        self.publish();
        let (recorded, launched) = tokio::join!(
            self.node.registry.update_sandbox(&self.row, StoredState::Paused),
            launch::launch(&self.node, &self.row, snapshot),
        );
        match (recorded, launched) {
            (Ok(_), Ok(machine)) => {
                self.watch_exit(&machine);
                Ok(machine)
            }
            (recorded, launched) => {
                if let Ok(machine) = launched.as_ref() {
                    machine.destroy().await;
                }
                self.row.state = StoredState::Paused;
                if let Err(error) = self.record(StoredState::Resuming).await {
                    tracing::error!(%error, "a failed resume could not be recorded");
                }
                self.publish();
                recorded?;
                Err(launched.err().map_or(LifecycleError::ShuttingDown, LifecycleError::from))
            }
        }
    }

    // --- deadline ---

    async fn move_deadline(&mut self, end_at: Timestamp) -> Result<(), LifecycleError> {
        let before = std::mem::replace(&mut self.row.record.end_at, end_at);
        if before != end_at {
            if let Err(error) = self.record(self.row.state).await {
                self.row.record.end_at = before;
                return Err(error.into());
            }
            self.retry_expiry_at = None;
            self.publish();
        }
        Ok(())
    }

    /// When the sandbox is to be killed or paused, if it runs.
    fn expires_at(&self) -> Option<tokio::time::Instant> {
        if self.row.state != StoredState::Running {
            return None;
        }
        if self.retry_expiry_at.is_some() {
            return self.retry_expiry_at;
        }
        let left = self.row.record.end_at.duration_since(Timestamp::now());
        // A deadline in the past is due at once.
        Some(tokio::time::Instant::now() + Duration::try_from(left).unwrap_or(Duration::ZERO))
    }

    async fn expire(&mut self) -> Next {
        let outcome = if self.row.record.pause_on_timeout {
            tracing::info!("deadline reached: pausing");
            self.pause().await.map(|()| Next::Continue)
        } else {
            tracing::info!("deadline reached: killing");
            self.kill().await.map(|()| Next::Ended)
        };
        outcome.unwrap_or_else(|error| {
            // A sandbox that cannot be saved runs on rather than being lost.
            tracing::error!(%error, "the deadline could not be kept; trying again");
            self.retry_expiry_at = Some(tokio::time::Instant::now() + RETRY_AUTOMATIC_PAUSE);
            Next::Continue
        })
    }

    // --- end ---

    #[tracing::instrument(name = "sandbox.kill", skip_all)]
    async fn kill(&mut self) -> Result<(), LifecycleError> {
        let before = self.row.state;
        self.row.state = StoredState::Killing;
        if let Err(error) = self.node.registry.update_sandbox(&self.row, before).await {
            self.row.state = before;
            return Err(error.into());
        }
        self.publish();
        self.discard().await;
        Ok(())
    }

    /// Destroys machine, snapshot and row, and withdraws the sandbox.
    async fn discard(&mut self) {
        match std::mem::replace(&mut self.carrier, Carrier::Nothing) {
            Carrier::Nothing => {}
            Carrier::Running { machine, closed, .. } => {
                closed.cancel();
                machine.destroy().await;
            }
            Carrier::Stopped { machine, saving, waiters } => {
                saving.cancel();
                machine.destroy().await;
                drop(waiters);
            }
        }
        self.remove_saves_under_way().await;
        if let Some(snapshot) = self.row.snapshot_id.take() {
            self.remove_snapshot(snapshot).await;
        }
        // The row goes last: a snapshot without a row is taken for one whose row was lost, and kept.
        if let Err(error) = self.node.registry.delete_sandbox(&self.row.id).await {
            tracing::error!(%error, "a destroyed sandbox stays in the database until the next start");
        }
        self.status.send_modify(|status| {
            status.gone = true;
            status.route = None;
        });
        let mut entries = self.entries.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        entries.remove(&self.row.id);
    }

    /// The machine's process is gone, and nobody here ended it; or, with `cause`, it is of no use any more.
    async fn machine_ended(&mut self, id: &MachineId, cause: Option<String>) -> Next {
        if self.row.machine_id.as_ref() != Some(id) {
            return Next::Continue;
        }
        let (machine, waiters) = match std::mem::replace(&mut self.carrier, Carrier::Nothing) {
            Carrier::Nothing => return Next::Continue,
            Carrier::Running { machine, closed, .. } => {
                closed.cancel();
                (machine, Vec::new())
            }
            Carrier::Stopped { machine, saving, waiters } => {
                saving.cancel();
                self.epoch += 1;
                (machine, waiters)
            }
        };
        let why = cause.unwrap_or_else(|| machine.last_words());
        machine.destroy().await;
        if self.row.snapshot_id.is_none() {
            tracing::error!(%why, "the machine ended and the sandbox was never paused: it is lost");
            self.discard().await;
            return Next::Ended;
        }
        tracing::error!(%why, "the machine ended: the sandbox is back at its last durable pause");
        let before = self.row.state;
        self.row.state = StoredState::Paused;
        self.row.machine_id = None;
        self.row.record.end_at = Timestamp::now();
        if let Err(error) = self.record(before).await {
            tracing::error!(%error, "the end of a machine could not be recorded");
        }
        self.publish();
        for waiter in waiters {
            let what = "The sandbox's machine ended before it was saved";
            answer(waiter, Err(LifecycleError::Failed { what, why: why.clone() }));
        }
        Next::Continue
    }

    // --- helpers ---

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
        let vault = self.node.vault.clone();
        let removed = tokio::task::spawn_blocking(move || vault.remove(&id).map_err(|e| chain(&e))).await;
        if let Ok(Err(error)) = removed {
            tracing::error!(%error, "a snapshot nobody needs could not be removed; the next start removes it");
        }
    }

    /// Writes the row, which the database has in state `expected`.
    async fn record(&self, expected: StoredState) -> Result<(), crate::registry::RegistryError> {
        if !self.node.registry.update_sandbox(&self.row, expected).await? {
            tracing::error!(?expected, state = ?self.row.state, "the database holds another state than expected");
        }
        Ok(())
    }

    fn publish(&self) {
        let (route, durable) = match &self.carrier {
            Carrier::Running { machine, closed, awake: true } if self.row.state == StoredState::Running => {
                (Some(Route { connector: machine.connector(), closed: closed.clone() }), true)
            }
            Carrier::Stopped { .. } => (None, false),
            Carrier::Running { .. } | Carrier::Nothing => (None, true),
        };
        let row = Arc::new(self.row.clone());
        self.status.send_replace(Status { row, route, durable, gone: false });
    }

    fn watch_exit(&self, machine: &Machine) {
        let (machine, events) = (machine.clone(), self.events.clone());
        tokio::spawn(async move {
            machine.exited().await;
            // The actor may be gone, and the machine with it.
            let _ = events.send(Event::MachineExited(machine.id().clone()));
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

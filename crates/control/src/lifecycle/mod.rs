//! The life of every sandbox: create, pause, resume, kill, and the deadline.
//!
//! One actor per sandbox ([`actor`]) alone changes that sandbox's state. It writes each intent to the registry before it
//! takes the step that cannot be taken back, and publishes what it did as a [`Status`] that everybody else only reads:
//! listings and the gateway never wait behind an operation.
//!
//! ```text
//!  http ──► Sandboxes ──command──► actor ──► registry (intent, outcome)
//!  gateway ─► (reads Status) ◄──publishes── │
//!                                           ├──► launch: snapshot → machine → agent
//!                                           └──► save: stopped machine → snapshot (in the background)
//! ```
//!
//! A pause is answered when the machine is stopped and its state captured. Saving follows at once; until it is
//! done the stopped machine is kept, and a resume costs a `cont`.

mod actor;
pub mod api;
mod bases;
mod boot;
mod collect;
mod deadline;
mod egress;
mod guest;
mod idle;
mod launch;
mod limits;
mod listing;
mod node;
mod origin;
mod rebuild;
mod reconcile;
mod rehearsal;
mod room;
mod save;
mod snapshots;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use torpor_gateway::{Access, Traffic};
use torpor_network::Connector;
use torpor_types::{Egress, SandboxId, TeamId};
use tracing::Instrument;

use self::actor::{Command, Operation, Resume};
use self::node::Node;
use crate::registry::{SandboxRow, StoredState};
use crate::telemetry::{LogQuery, LogRecord, MetricPoint};

pub use api::{
    Connected, CreateSandbox, DEFAULT_TIMEOUT_S, LEGACY_TIMEOUT_S, LifecycleError, OnTimeout, SandboxView,
    SnapshotView, VisibleState,
};
pub use collect::{CollectError, Collected, Skipped};
pub(crate) use idle::Activity;
pub use limits::Limits;
pub use listing::Listed;
pub use node::{NodeOptions, StartError};
pub use rebuild::{Made, MadeKind, RebuildError, Rebuilt, Unreadable, rebuild_index};
pub use reconcile::Reconciled;

/// How long traffic waits for a sandbox that is changing its state before it is told to try again: as long as
/// SDKs wait for an answer.
const TRANSITION_LIMIT: Duration = Duration::from_secs(60);

/// Handle to all sandboxes of this node. Cheap to clone.
#[derive(Clone)]
pub struct Sandboxes {
    inner: Arc<Inner>,
}

/// Where the traffic of a running sandbox goes.
#[derive(Clone)]
pub struct Route {
    /// Opens connections to the sandbox's ports.
    pub connector: Connector,
    /// Ports whose programs are spoken to in TLS.
    pub https_ports: std::collections::BTreeSet<u16>,
    /// Cancelled the moment the machine behind it stops (pause, kill, crash): cut every stream then.
    pub closed: tokio_util::sync::CancellationToken,
    /// Where the gateway counts what passes, for the idle timer.
    pub traffic: Traffic,
}

struct Inner {
    node: Arc<Node>,
    entries: Entries,
}

type Entries = Arc<RwLock<HashMap<SandboxId, Entry>>>;

/// A sandbox as the others see it: where to send commands, and what is known of it.
#[derive(Clone)]
struct Entry {
    commands: mpsc::Sender<Box<Command>>,
    status: watch::Receiver<Status>,
}

/// What an actor publishes of its sandbox.
#[derive(Clone)]
struct Status {
    row: Arc<SandboxRow>,
    /// Present while the machine runs and its agent knows who it is.
    route: Option<Route>,
    /// Whether everything up to the last pause is on disk.
    durable: bool,
    /// It runs, and is being copied: for a moment its machine stands still.
    copying: bool,
    /// Why it runs beyond its deadline, if it was to be paused and could not.
    held_up: Option<String>,
    /// Destroyed; the entry is about to vanish.
    gone: bool,
}

// === impl Sandboxes ===

impl Sandboxes {
    /// Takes over what an earlier server left (machines that still run, sandboxes that are paused) and starts to serve.
    ///
    /// # Errors
    /// [`StartError`] when the registry or the machines cannot be read.
    pub async fn start(options: NodeOptions) -> Result<(Sandboxes, Reconciled), StartError> {
        let node = Arc::new(Node::start(options).await?);
        let entries = Entries::default();
        let reconciled = reconcile::reconcile(&node, &entries).await?;
        tokio::spawn(room::watch(Arc::downgrade(&node)));
        node.warm_up().await;
        Ok((Sandboxes { inner: Arc::new(Inner { node, entries }) }, reconciled))
    }

    /// Creates a sandbox and answers when its agent is ready.
    ///
    /// # Errors
    /// [`LifecycleError::TemplateNotFound`], a timeout out of range, [`LifecycleError::TooManyRunning`],
    /// [`LifecycleError::NoRoom`], or [`LifecycleError::Failed`]; nothing is left of the sandbox then.
    pub async fn create(&self, team: &TeamId, request: CreateSandbox) -> Result<SandboxView, LifecycleError> {
        let (node, entries, team) = (self.inner.node.clone(), self.inner.entries.clone(), team.clone());
        // A task of its own: a client that hangs up must not leave a half-made sandbox.
        let creation =
            async move { actor::create(&node, &entries, team, request).await.map(|s| s.view(&node)) };
        tokio::spawn(creation.in_current_span()).await.unwrap_or(Err(LifecycleError::ShuttingDown))
    }

    /// One sandbox.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`].
    pub async fn get(&self, team: &TeamId, id: &SandboxId) -> Result<SandboxView, LifecycleError> {
        let mut view = self.entry(team, id)?.status.borrow().view(&self.inner.node);
        self.tell_how_long_kept(team, std::slice::from_mut(&mut view)).await;
        Ok(view)
    }

    /// Pauses. Concurrent pauses join. With `wait_durable` it answers only when the pause would survive a power cut.
    /// Without memory, what is on the disk is kept and nothing else: a resume boots.
    ///
    /// # Errors
    /// [`LifecycleError::AlreadyPaused`], [`LifecycleError::NotFound`], [`LifecycleError::NoRoom`] (the sandbox runs
    /// on), [`LifecycleError::Failed`] (it runs on, or is at its last durable pause).
    pub async fn pause(
        &self,
        team: &TeamId,
        id: &SandboxId,
        keep_memory: bool,
        wait_durable: bool,
    ) -> Result<(), LifecycleError> {
        self.ask(team, id, |reply| Operation::Pause { keep_memory, wait_durable, reply }).await
    }

    /// Resumes a paused sandbox. `on_timeout` overrides what was chosen at creation (old SDKs send
    /// `autoPause` here). Without `keep_memory` it boots from the disk as it was when it was paused, whatever the
    /// pause kept: running programs, and what they had not written to the disk, are lost. Concurrent resumes join.
    ///
    /// # Errors
    /// [`LifecycleError::AlreadyRunning`], [`LifecycleError::NotFound`], a timeout out of range,
    /// [`LifecycleError::TooManyRunning`], [`LifecycleError::Unfit`] and [`LifecycleError::Failed`] (it is paused as before).
    pub async fn resume(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        on_timeout: Option<OnTimeout>,
        keep_memory: bool,
    ) -> Result<SandboxView, LifecycleError> {
        deadline::check_timeout(timeout_s, self.inner.node.limits(team).await?.max_timeout_s)?;
        let resume = Resume { timeout_s, on_timeout, must_be_paused: true, keep_memory };
        let operation = |reply| Operation::Resume { resume, reply };
        self.ask(team, id, operation).await.map(|(view, _)| view)
    }

    /// Resumes if paused (see [`resume`](Self::resume) for `keep_memory`); if running only extends the deadline, never
    /// shortens it. Concurrent calls join.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`], [`LifecycleError::InTransition`] while it is being killed, a timeout over the maximum, [`LifecycleError::TooManyRunning`],
    /// [`LifecycleError::Unfit`] and [`LifecycleError::Failed`] (it is paused as before).
    pub async fn connect(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        keep_memory: bool,
    ) -> Result<(SandboxView, Connected), LifecycleError> {
        deadline::check_maximum(timeout_s, self.inner.node.limits(team).await?.max_timeout_s)?;
        let being_killed = self.find(id).is_some_and(|entry| {
            let status = entry.status.borrow();
            status.row.team_id == *team && status.row.state == StoredState::Killing
        });
        if being_killed {
            return Err(LifecycleError::InTransition(id.clone()));
        }
        let resume = Resume { timeout_s, on_timeout: None, must_be_paused: false, keep_memory };
        let operation = |reply| Operation::Resume { resume, reply };
        self.ask(team, id, operation).await
    }

    /// Sets the deadline to now + `timeout_s`; 0 or less expires it at once.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`], [`LifecycleError::Paused`] (a paused sandbox has no deadline),
    /// [`LifecycleError::InTransition`] while it is being paused or copied, [`LifecycleError::MaxLengthExceeded`] if it has run
    /// for the maximum already.
    pub async fn set_timeout(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
    ) -> Result<(), LifecycleError> {
        self.require_at_rest(team, id)?;
        self.ask(team, id, |reply| Operation::SetTimeout { timeout_s, reply }).await
    }

    /// Moves the deadline to at least now + `duration_s` (minimum 15 s); never shortens.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`], [`LifecycleError::Paused`].
    pub async fn refresh(
        &self,
        team: &TeamId,
        id: &SandboxId,
        duration_s: i64,
    ) -> Result<(), LifecycleError> {
        self.ask(team, id, |reply| Operation::Refresh { duration_s, reply }).await
    }

    /// Replaces what a running sandbox reaches, for new connections and for those that are open.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`], [`LifecycleError::Paused`], [`LifecycleError::InTransition`],
    /// [`LifecycleError::ProxyOutOfReach`], [`LifecycleError::Failed`] (it reaches what it did before).
    pub async fn set_egress(
        &self,
        team: &TeamId,
        id: &SandboxId,
        egress: Egress,
        allow_internet: bool,
    ) -> Result<(), LifecycleError> {
        self.require_at_rest(team, id)?;
        let egress = Box::new(egress);
        self.ask(team, id, |reply| Operation::SetEgress { egress, allow_internet, reply }).await
    }

    /// Destroys it, running or paused, with all its snapshots.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`].
    pub async fn kill(&self, team: &TeamId, id: &SandboxId) -> Result<(), LifecycleError> {
        self.ask(team, id, |reply| Operation::Kill { reply }).await
    }

    /// Where traffic for the sandbox goes, for the gateway; not bound to a team (the sandbox's own token
    /// guards it). Waits while the sandbox changes its state.
    ///
    /// # Errors
    /// [`LifecycleError::Paused`], [`LifecycleError::NotFound`] for killed and unknown ones,
    /// [`LifecycleError::InTransition`] when the change takes too long.
    pub async fn route(&self, id: &SandboxId) -> Result<Route, LifecycleError> {
        let not_found = || LifecycleError::NotFound(id.clone());
        let mut entry = self.find(id).ok_or_else(not_found)?;
        let settled = entry.status.wait_for(|status| status.is_settled());
        match tokio::time::timeout(TRANSITION_LIMIT, settled).await {
            Err(_) => Err(LifecycleError::InTransition(id.clone())),
            Ok(Err(_)) => Err(not_found()),
            Ok(Ok(status)) if status.gone => Err(not_found()),
            Ok(Ok(status)) => match (&status.route, status.row.state) {
                (Some(route), _) => Ok(route.clone()),
                (None, StoredState::Paused) => Err(LifecycleError::Paused(id.clone())),
                (None, _) => Err(not_found()),
            },
        }
    }

    /// Resumes a paused sandbox on behalf of traffic. Any number of simultaneous calls lead to one resume.
    ///
    /// # Errors
    /// [`LifecycleError::Paused`] if traffic does not resume it, [`LifecycleError::NotFound`],
    /// [`LifecycleError::Failed`] (it is paused as before).
    pub async fn wake(&self, id: &SandboxId) -> Result<(), LifecycleError> {
        let entry = self.find(id).ok_or_else(|| LifecycleError::NotFound(id.clone()))?;
        if !entry.status.borrow().resumes_on_traffic() {
            return Err(LifecycleError::Paused(id.clone()));
        }
        Self::ask_entry(&entry, id, |reply| Operation::Wake { reply }).await
    }

    /// Who may reach the sandbox, for the gateway; `None` if there is none.
    pub fn access(&self, id: &SandboxId) -> Option<Access> {
        let entry = self.find(id)?;
        let status = entry.status.borrow();
        (!status.gone).then(|| Access {
            traffic_token: self.inner.node.traffic_token(&status.row),
            agent_token: self.inner.node.access_token(&status.row),
            mask_request_host: status.row.record.network.ingress.mask_request_host.clone(),
        })
    }

    /// Whether traffic resumes the sandbox when it is paused.
    pub fn resumes_on_traffic(&self, id: &SandboxId) -> bool {
        self.find(id).is_some_and(|entry| entry.status.borrow().resumes_on_traffic())
    }

    /// The sandbox whose access token fulfils a condition.
    pub fn find_by_access_token(&self, is_it: impl Fn(&str) -> bool) -> Option<SandboxId> {
        let entries = self.inner.entries.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut rows = entries.values().map(|entry| entry.status.borrow().row.clone());
        let row = rows.find(|row| self.inner.node.access_token(row).is_some_and(|token| is_it(&token)))?;
        Some(row.id.clone())
    }

    /// The last lines of the guest's console (at most 64 KiB); empty while it is paused and saved.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`].
    pub async fn console_log(&self, team: &TeamId, id: &SandboxId) -> Result<String, LifecycleError> {
        let entry = self.entry(team, id)?;
        let machine = entry.status.borrow().row.machine_id.clone();
        Ok(machine.map(|machine| self.inner.node.machines.console_log(&machine)).unwrap_or_default())
    }

    /// Its use of resources from second `start` to second `end` since 1970, both included, oldest first.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`].
    pub async fn metrics(
        &self,
        team: &TeamId,
        id: &SandboxId,
        start: i64,
        end: i64,
    ) -> Result<Vec<MetricPoint>, LifecycleError> {
        self.entry(team, id)?;
        Ok(self.inner.node.telemetry.metrics(id, start, end))
    }

    /// The newest use of resources of those of `ids` that are the team's and have told any.
    pub async fn newest_metrics(&self, team: &TeamId, ids: &[SandboxId]) -> Vec<(SandboxId, MetricPoint)> {
        let own = ids.iter().filter(|id| self.entry(team, id).is_ok());
        own.filter_map(|id| Some((id.clone(), self.inner.node.telemetry.newest_metric(id)?))).collect()
    }

    /// Entries of its log.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`], [`LifecycleError::Failed`] when the log cannot be read.
    pub async fn logs(
        &self,
        team: &TeamId,
        id: &SandboxId,
        query: LogQuery,
    ) -> Result<Vec<LogRecord>, LifecycleError> {
        self.entry(team, id)?;
        let read = self.inner.node.telemetry.logs(id, query).await;
        read.map_err(|error| LifecycleError::Failed {
            what: "The sandbox's log could not be read",
            why: error.to_string(),
        })
    }

    fn find(&self, id: &SandboxId) -> Option<Entry> {
        let entries = self.inner.entries.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        entries.get(id).cloned()
    }

    fn entry(&self, team: &TeamId, id: &SandboxId) -> Result<Entry, LifecycleError> {
        let entry = self.find(id).filter(|entry| {
            let status = entry.status.borrow();
            status.row.team_id == *team && !status.gone && status.row.state != StoredState::Killing
        });
        entry.ok_or_else(|| LifecycleError::NotFound(id.clone()))
    }

    /// Sends an operation to the sandbox's actor and waits for its answer. The operation is carried out to its end even
    /// if the caller stops waiting.
    async fn ask<T>(
        &self,
        team: &TeamId,
        id: &SandboxId,
        operation: impl FnOnce(oneshot::Sender<Result<T, LifecycleError>>) -> Operation,
    ) -> Result<T, LifecycleError> {
        Self::ask_entry(&self.entry(team, id)?, id, operation).await
    }

    async fn ask_entry<T>(
        entry: &Entry,
        id: &SandboxId,
        operation: impl FnOnce(oneshot::Sender<Result<T, LifecycleError>>) -> Operation,
    ) -> Result<T, LifecycleError> {
        let (reply, answer) = oneshot::channel();
        let command =
            Command { arrived: Instant::now(), span: tracing::Span::current(), operation: operation(reply) };
        let command = Box::new(command);
        // A closed channel on either side means that the sandbox was destroyed meanwhile.
        entry.commands.send(command).await.map_err(|_| LifecycleError::NotFound(id.clone()))?;
        answer.await.unwrap_or_else(|_| Err(LifecycleError::NotFound(id.clone())))
    }
}

// === impl Status ===

impl Status {
    /// Whether it may be changed: neither on its way to a pause nor being copied.
    fn is_at_rest(&self) -> bool {
        self.row.state != StoredState::Pausing && !self.copying
    }

    /// A boot takes too long to be started by a request, so that what was paused without memory waits to be asked.
    fn resumes_on_traffic(&self) -> bool {
        self.row.record.auto_resume && !self.row.record.filesystem_only
    }

    fn is_settled(&self) -> bool {
        self.gone
            || match self.row.state {
                StoredState::Running => self.route.is_some(),
                StoredState::Paused | StoredState::Killing => true,
                StoredState::Creating | StoredState::Pausing | StoredState::Resuming => false,
            }
    }

    fn is_visible(&self, now: Timestamp) -> bool {
        let record = &self.row.record;
        let expired =
            self.visible_state() == VisibleState::Running && record.end_at <= now && !record.pause_on_timeout;
        !self.gone && !expired && !matches!(self.row.state, StoredState::Killing | StoredState::Creating)
    }

    fn visible_state(&self) -> VisibleState {
        match self.row.state {
            StoredState::Creating | StoredState::Running | StoredState::Resuming | StoredState::Killing => {
                VisibleState::Running
            }
            StoredState::Pausing | StoredState::Paused => VisibleState::Paused,
        }
    }
}

//! The life of every sandbox: create, pause, resume, kill, and the deadline.

pub mod api;

use std::sync::Arc;

use torpor_network::Connector;
use torpor_types::{SandboxId, TeamId};

pub use api::{Connected, CreateSandbox, LifecycleError, OnTimeout, SandboxView, VisibleState};

/// Handle to all sandboxes of this node. Cheap to clone.
#[derive(Clone)]
pub struct Sandboxes {
    #[allow(dead_code)]
    inner: Arc<()>,
}

/// Where the traffic of a running sandbox goes.
#[derive(Clone)]
pub struct Route {
    /// Opens connections to the sandbox's ports.
    pub connector: Connector,
    /// Cancelled the moment the machine behind it stops (pause, kill, crash): cut every stream then.
    pub closed: tokio_util::sync::CancellationToken,
}

// === impl Sandboxes ===

impl Sandboxes {
    /// Creates a sandbox and answers when its agent is ready.
    pub async fn create(
        &self,
        _team: &TeamId,
        _request: CreateSandbox,
    ) -> Result<SandboxView, LifecycleError> {
        unimplemented!()
    }

    /// All sandboxes of a team, in no order. Killed and expired ones are never among them.
    pub async fn list(&self, _team: &TeamId) -> Vec<SandboxView> {
        unimplemented!()
    }

    /// One sandbox.
    pub async fn get(&self, _team: &TeamId, _id: &SandboxId) -> Result<SandboxView, LifecycleError> {
        unimplemented!()
    }

    /// Pauses. Concurrent pauses join; on a paused sandbox [`LifecycleError::AlreadyPaused`]. With `wait_durable`
    /// it answers only when the pause would survive a power cut.
    pub async fn pause(
        &self,
        _team: &TeamId,
        _id: &SandboxId,
        _wait_durable: bool,
    ) -> Result<(), LifecycleError> {
        unimplemented!()
    }

    /// Resumes a paused sandbox; on a running one [`LifecycleError::AlreadyRunning`]. `on_timeout` overrides
    /// what was chosen at creation (old SDKs send `autoPause` here).
    pub async fn resume(
        &self,
        _team: &TeamId,
        _id: &SandboxId,
        _timeout_s: i64,
        _on_timeout: Option<OnTimeout>,
    ) -> Result<SandboxView, LifecycleError> {
        unimplemented!()
    }

    /// Resumes if paused; if running only extends the deadline, never shortens it. Concurrent calls join.
    pub async fn connect(
        &self,
        _team: &TeamId,
        _id: &SandboxId,
        _timeout_s: i64,
    ) -> Result<(SandboxView, Connected), LifecycleError> {
        unimplemented!()
    }

    /// Sets the deadline to now + `timeout_s`; 0 or less expires it at once.
    pub async fn set_timeout(
        &self,
        _team: &TeamId,
        _id: &SandboxId,
        _timeout_s: i64,
    ) -> Result<(), LifecycleError> {
        unimplemented!()
    }

    /// Moves the deadline to at least now + `duration_s` (minimum 15 s); never shortens.
    pub async fn refresh(
        &self,
        _team: &TeamId,
        _id: &SandboxId,
        _duration_s: i64,
    ) -> Result<(), LifecycleError> {
        unimplemented!()
    }

    /// Destroys it, running or paused, with all its snapshots.
    pub async fn kill(&self, _team: &TeamId, _id: &SandboxId) -> Result<(), LifecycleError> {
        unimplemented!()
    }

    /// Where traffic for the sandbox goes, for the gateway; not bound to a team (the sandbox's own token guards it).
    /// Paused, killed and unknown are [`LifecycleError::NotFound`]; changing state is [`LifecycleError::InTransition`].
    pub async fn route(&self, _id: &SandboxId) -> Result<Route, LifecycleError> {
        unimplemented!()
    }

    /// The last lines of the guest's console.
    pub async fn console_log(&self, _team: &TeamId, _id: &SandboxId) -> Result<String, LifecycleError> {
        unimplemented!()
    }
}

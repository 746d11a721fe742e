//! Tells the gateway the way to a sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use torpor_gateway::{Access, MayResume, Refusal, Resolve, SignedFile, Upstream, UpstreamOptions};
use torpor_types::SandboxId;

use crate::lifecycle::{LifecycleError, Route, Sandboxes};

/// Routes to running sandboxes. Keeps one [`Upstream`], and with it the connections, for each run of a sandbox, and
/// forgets it when the run ends.
#[derive(Clone)]
pub struct Routes {
    sandboxes: Sandboxes,
    upstreams: Arc<Mutex<HashMap<SandboxId, Upstream>>>,
}

// === impl Routes ===

impl Routes {
    /// The ways to `sandboxes`.
    pub fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes, upstreams: Arc::default() }
    }
}

impl Routes {
    /// Where the traffic goes, after a resume if it is to cause one.
    async fn route(&self, id: &SandboxId, may_resume: MayResume) -> Result<Route, Refusal> {
        match self.sandboxes.route(id).await {
            Err(LifecycleError::Paused(_)) if self.sandboxes.resumes_on_traffic(id) => match may_resume {
                MayResume::No => Err(Refusal::MayNotResume),
                MayResume::Yes => {
                    self.sandboxes.wake(id).await.map_err(refusal)?;
                    self.sandboxes.route(id).await.map_err(refusal)
                }
            },
            found => found.map_err(refusal),
        }
    }
}

impl Resolve for Routes {
    fn access(&self, id: &SandboxId) -> Option<Access> {
        self.sandboxes.access(id)
    }

    fn signer(&self, file: &SignedFile) -> Option<SandboxId> {
        self.sandboxes.find_by_access_token(|token| file.is_by(token))
    }

    async fn resolve(&self, id: &SandboxId, may_resume: MayResume) -> Result<Upstream, Refusal> {
        let route = self.route(id, may_resume).await?;
        let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = upstreams.get(id).filter(|known| !known.is_closed()) {
            return Ok(known.clone());
        }
        let closed = route.closed.clone();
        let connector = route.connector;
        let connect = move |port| {
            let connector = connector.clone();
            async move { connector.connect(port).await }
        };
        let options = UpstreamOptions { https_ports: route.https_ports, traffic: route.traffic };
        let upstream = Upstream::new(connect, options, route.closed);
        upstreams.insert(id.clone(), upstream.clone());
        let (all, id) = (Arc::clone(&self.upstreams), id.clone());
        tokio::spawn(async move {
            closed.cancelled().await;
            // The connector holds the sandbox's network namespace: nothing of it may outlive the run.
            let mut upstreams = all.lock().unwrap_or_else(PoisonError::into_inner);
            if upstreams.get(&id).is_some_and(Upstream::is_closed) {
                upstreams.remove(&id);
            }
        });
        Ok(upstream)
    }
}

fn refusal(error: LifecycleError) -> Refusal {
    use LifecycleError as E;
    match error {
        E::NotFound(_) | E::NotRunning(_) => Refusal::NotFound,
        E::Paused(_) | E::AlreadyPaused(_) => Refusal::Paused,
        E::InTransition(_) | E::AlreadyRunning(_) => Refusal::Transitioning,
        E::TooManyRunning { .. } => Refusal::Limited(error.to_string()),
        E::TemplateNotFound { .. }
        | E::InvalidName { .. }
        | E::SnapshotInUse { .. }
        | E::TimeoutNotPositive
        | E::ProxyOutOfReach(_)
        | E::TimeoutTooLong { .. }
        | E::MaxLengthExceeded
        | E::NoRoom { .. }
        | E::Unfit { .. }
        | E::Failed { .. }
        | E::ShuttingDown
        | E::Registry(_) => Refusal::Broken(error.to_string()),
    }
}

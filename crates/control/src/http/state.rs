//! What the handlers work with.

use std::sync::Arc;

use async_trait::async_trait;
use torpor_types::{Egress, SandboxId, TeamId};

use super::idempotency::Repeats;
use super::list::{ListQuery, Page};
use crate::lifecycle::{
    CollectError, Collected, Connected, CreateSandbox, LifecycleError, OnTimeout, SandboxView, Sandboxes,
    SnapshotView,
};
use crate::registry::Registry;
use crate::retention::Plan;
use crate::telemetry::{LogQuery, LogRecord, MetricPoint};

/// How the API presents itself.
#[derive(Debug, Clone, Default)]
pub struct ApiOptions {
    /// The domain (with port, if not the usual one) under which `{port}-{id}.{domain}` reaches this server. Given to
    /// clients with every sandbox; `None` leaves them the domain they were configured with.
    pub domain: Option<String>,
    /// The SHA-256, in lower-case hex, of the key whose holder may do what concerns all teams; `None`: nobody may.
    pub operator_key_sha256: Option<String>,
}

/// Shared by all handlers.
pub(super) struct ApiState {
    pub(super) sandboxes: Arc<dyn Lifecycle>,
    pub(super) registry: Registry,
    pub(super) options: ApiOptions,
    pub(super) repeats: Repeats,
    /// The OpenAPI document.
    pub(super) document: String,
}

/// The operations of [`Sandboxes`] the API calls, which say there what they do. A seam, so that the wire protocol can
/// be proven without starting machines.
#[async_trait]
pub(super) trait Lifecycle: Send + Sync {
    async fn create(&self, team: &TeamId, request: CreateSandbox) -> Result<SandboxView, LifecycleError>;
    /// The page that `query` picks of a team's sandboxes.
    async fn list(&self, team: &TeamId, query: &ListQuery) -> Page<SandboxView>;
    async fn get(&self, team: &TeamId, id: &SandboxId) -> Result<SandboxView, LifecycleError>;
    async fn pause(
        &self,
        team: &TeamId,
        id: &SandboxId,
        keep_memory: bool,
        wait_durable: bool,
    ) -> Result<(), LifecycleError>;
    async fn resume(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        on_timeout: Option<OnTimeout>,
        keep_memory: bool,
    ) -> Result<SandboxView, LifecycleError>;
    async fn connect(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        keep_memory: bool,
    ) -> Result<(SandboxView, Connected), LifecycleError>;
    async fn set_timeout(&self, team: &TeamId, id: &SandboxId, timeout_s: i64) -> Result<(), LifecycleError>;
    async fn refresh(&self, team: &TeamId, id: &SandboxId, duration_s: i64) -> Result<(), LifecycleError>;
    async fn set_egress(
        &self,
        team: &TeamId,
        id: &SandboxId,
        egress: Egress,
        allow_internet: bool,
    ) -> Result<(), LifecycleError>;
    async fn kill(&self, team: &TeamId, id: &SandboxId) -> Result<(), LifecycleError>;
    async fn snapshot(
        &self,
        team: &TeamId,
        id: &SandboxId,
        name: Option<&str>,
        keep_memory: bool,
    ) -> Result<SnapshotView, LifecycleError>;
    async fn snapshots(
        &self,
        team: &TeamId,
        source: Option<&SandboxId>,
        name: Option<&str>,
    ) -> Result<Vec<SnapshotView>, LifecycleError>;
    async fn delete_snapshot(&self, team: &TeamId, asked: &str) -> Result<(), LifecycleError>;
    async fn fork(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        count: usize,
    ) -> Result<Vec<Result<SandboxView, LifecycleError>>, LifecycleError>;
    async fn console_log(&self, team: &TeamId, id: &SandboxId) -> Result<String, LifecycleError>;
    async fn metrics(
        &self,
        team: &TeamId,
        id: &SandboxId,
        start: i64,
        end: i64,
    ) -> Result<Vec<MetricPoint>, LifecycleError>;
    async fn newest_metrics(&self, team: &TeamId, ids: &[SandboxId]) -> Vec<(SandboxId, MetricPoint)>;
    async fn logs(
        &self,
        team: &TeamId,
        id: &SandboxId,
        query: LogQuery,
    ) -> Result<Vec<LogRecord>, LifecycleError>;
    async fn plan_collection(&self) -> Result<Plan, CollectError>;
    async fn collect(&self) -> Result<Collected, CollectError>;
}

// === impl Sandboxes ===

#[async_trait]
impl Lifecycle for Sandboxes {
    async fn create(&self, team: &TeamId, request: CreateSandbox) -> Result<SandboxView, LifecycleError> {
        Sandboxes::create(self, team, request).await
    }

    async fn list(&self, team: &TeamId, query: &ListQuery) -> Page<SandboxView> {
        let Page { sandboxes, next_token, total_running } = query.page(Sandboxes::list(self, team));
        Page { sandboxes: self.describe(team, &sandboxes).await, next_token, total_running }
    }

    async fn get(&self, team: &TeamId, id: &SandboxId) -> Result<SandboxView, LifecycleError> {
        Sandboxes::get(self, team, id).await
    }

    async fn pause(
        &self,
        team: &TeamId,
        id: &SandboxId,
        keep_memory: bool,
        wait_durable: bool,
    ) -> Result<(), LifecycleError> {
        Sandboxes::pause(self, team, id, keep_memory, wait_durable).await
    }

    async fn snapshot(
        &self,
        team: &TeamId,
        id: &SandboxId,
        name: Option<&str>,
        keep_memory: bool,
    ) -> Result<SnapshotView, LifecycleError> {
        Sandboxes::snapshot(self, team, id, name, keep_memory).await
    }

    async fn snapshots(
        &self,
        team: &TeamId,
        source: Option<&SandboxId>,
        name: Option<&str>,
    ) -> Result<Vec<SnapshotView>, LifecycleError> {
        Sandboxes::snapshots(self, team, source, name).await
    }

    async fn delete_snapshot(&self, team: &TeamId, asked: &str) -> Result<(), LifecycleError> {
        Sandboxes::delete_snapshot(self, team, asked).await
    }

    async fn fork(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        count: usize,
    ) -> Result<Vec<Result<SandboxView, LifecycleError>>, LifecycleError> {
        Sandboxes::fork(self, team, id, timeout_s, count).await
    }

    async fn resume(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        on_timeout: Option<OnTimeout>,
        keep_memory: bool,
    ) -> Result<SandboxView, LifecycleError> {
        Sandboxes::resume(self, team, id, timeout_s, on_timeout, keep_memory).await
    }

    async fn connect(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        keep_memory: bool,
    ) -> Result<(SandboxView, Connected), LifecycleError> {
        Sandboxes::connect(self, team, id, timeout_s, keep_memory).await
    }

    async fn set_timeout(&self, team: &TeamId, id: &SandboxId, timeout_s: i64) -> Result<(), LifecycleError> {
        Sandboxes::set_timeout(self, team, id, timeout_s).await
    }

    async fn refresh(&self, team: &TeamId, id: &SandboxId, duration_s: i64) -> Result<(), LifecycleError> {
        Sandboxes::refresh(self, team, id, duration_s).await
    }

    async fn set_egress(
        &self,
        team: &TeamId,
        id: &SandboxId,
        egress: Egress,
        allow_internet: bool,
    ) -> Result<(), LifecycleError> {
        Sandboxes::set_egress(self, team, id, egress, allow_internet).await
    }

    async fn kill(&self, team: &TeamId, id: &SandboxId) -> Result<(), LifecycleError> {
        Sandboxes::kill(self, team, id).await
    }

    async fn console_log(&self, team: &TeamId, id: &SandboxId) -> Result<String, LifecycleError> {
        Sandboxes::console_log(self, team, id).await
    }

    async fn metrics(
        &self,
        team: &TeamId,
        id: &SandboxId,
        start: i64,
        end: i64,
    ) -> Result<Vec<MetricPoint>, LifecycleError> {
        Sandboxes::metrics(self, team, id, start, end).await
    }

    async fn newest_metrics(&self, team: &TeamId, ids: &[SandboxId]) -> Vec<(SandboxId, MetricPoint)> {
        Sandboxes::newest_metrics(self, team, ids).await
    }

    async fn logs(
        &self,
        team: &TeamId,
        id: &SandboxId,
        query: LogQuery,
    ) -> Result<Vec<LogRecord>, LifecycleError> {
        Sandboxes::logs(self, team, id, query).await
    }

    async fn plan_collection(&self) -> Result<Plan, CollectError> {
        Sandboxes::plan_collection(self).await
    }

    async fn collect(&self) -> Result<Collected, CollectError> {
        Sandboxes::collect(self).await
    }
}

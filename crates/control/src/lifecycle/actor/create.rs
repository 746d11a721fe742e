//! A sandbox that does not exist yet.

use std::sync::Arc;

use jiff::Timestamp;
use torpor_types::{SandboxId, SnapshotId, TeamId};
use torpor_vault::interruption;

use super::{Actor, Carrier};
use crate::lifecycle::api::{CreateSandbox, LifecycleError, OnTimeout};
use crate::lifecycle::launch::{self, Launched, Start};
use crate::lifecycle::node::Node;
use crate::lifecycle::origin::Origin;
use crate::lifecycle::{Entries, Status, deadline};
use crate::registry::{SandboxRecord, SandboxRow, StoredState};

/// Bytes the vault must have for a new sandbox: its clones take nothing, what it writes first does.
pub(in crate::lifecycle) const ROOM_BYTES: u64 = 64 << 20;

/// Makes a new sandbox, from the request to a running machine with an actor of its own.
pub(in crate::lifecycle) async fn create(
    node: &Arc<Node>,
    entries: &Entries,
    team: TeamId,
    request: CreateSandbox,
) -> Result<Status, LifecycleError> {
    node.check_egress(&request.network.egress)?;
    let origin = Origin::find(node, &team, &request.template).await?;
    let now = Timestamp::now();
    let mut env_vars = origin.env_vars;
    env_vars.extend(request.env_vars);
    let record = SandboxRecord {
        template_id: origin.template_id,
        template_name: origin.template_name,
        shape: origin.shape,
        envd_version: origin.envd_version,
        started_at: now,
        end_at: now,
        pause_on_timeout: request.on_timeout == OnTimeout::Pause,
        keep_memory_on_timeout: request.keep_memory_on_timeout,
        filesystem_only: false,
        auto_resume: request.auto_resume,
        idle_timeout_s: request.idle_timeout_s,
        retention_days: request.retention_days,
        initial_timeout_s: request.timeout_s,
        secure: request.secure,
        allow_internet: request.allow_internet,
        network: request.network,
        metadata: request.metadata,
        env_vars,
    };
    start(node, entries, team, request.id, record, &origin.snapshot_id, request.timeout_s).await
}

/// Starts a new sandbox of `team` from `snapshot`, within the team's limits. Nothing is left of one that cannot be started.
pub(in crate::lifecycle) async fn start(
    node: &Arc<Node>,
    entries: &Entries,
    team: TeamId,
    id: SandboxId,
    record: SandboxRecord,
    snapshot: &SnapshotId,
    timeout_s: i64,
) -> Result<Status, LifecycleError> {
    let limits = node.limits(&team).await?;
    deadline::check_timeout(timeout_s, limits.max_timeout_s)?;
    let _room = node.claim_room(ROOM_BYTES).await?;
    let _place = node.starts.take_place(entries, &team, &id, limits.max_running)?;
    let row = SandboxRow {
        id,
        team_id: team,
        state: StoredState::Creating,
        machine_id: None,
        snapshot_id: None,
        record: SandboxRecord { initial_timeout_s: timeout_s, ..record },
    };
    // The intent is recorded while the machine is being made: one without the other is cleared away by reconciliation.
    let (recorded, launched) = tokio::join!(
        node.registry.insert_sandbox(&row),
        launch::launch(node, &row, snapshot, Start::AsSaved)
    );
    let Launched { machine, base } = match (recorded, launched) {
        (Ok(()), Ok(launched)) => launched,
        (recorded, launched) => {
            if let Ok(launched) = launched.as_ref() {
                launched.machine.destroy().await;
            }
            node.registry.delete_sandbox(&row.id).await?;
            recorded?;
            return Err(launched.err().map_or(LifecycleError::ShuttingDown, LifecycleError::from));
        }
    };
    interruption::step("create.1");
    let mut running = row;
    running.state = StoredState::Running;
    running.machine_id = Some(machine.id().clone());
    running.record.started_at = Timestamp::now();
    running.record.end_at = deadline::after(running.record.started_at, timeout_s);
    if let Err(error) = node.registry.update_sandbox(&running, StoredState::Creating).await {
        machine.destroy().await;
        return Err(error.into());
    }
    interruption::step("create.2");
    Ok(Actor::spawn(node.clone(), entries.clone(), running, Carrier::running(machine), Some(base)))
}

//! A sandbox that does not exist yet.

use std::sync::Arc;

use jiff::Timestamp;
use torpor_types::TeamId;

use super::{Actor, Carrier};
use crate::lifecycle::api::{CreateSandbox, LifecycleError, OnTimeout};
use crate::lifecycle::node::Node;
use crate::lifecycle::{Entries, Status, deadline, launch};
use crate::registry::{SandboxRecord, SandboxRow, StoredState};

/// Bytes the vault must have for a new sandbox: its clones take nothing, what it writes first does.
const ROOM_BYTES: u64 = 64 << 20;

/// Makes a new sandbox, from the request to a running machine with an actor of its own.
pub(in crate::lifecycle) async fn create(
    node: &Arc<Node>,
    entries: &Entries,
    team: TeamId,
    request: CreateSandbox,
) -> Result<Status, LifecycleError> {
    let limits = node.limits(&team).await?;
    deadline::check_timeout(request.timeout_s, limits.max_timeout_s)?;
    let template = node.template(&request.template).await?;
    node.require_room(ROOM_BYTES)?;
    let id = request.id;
    let _place = node.starts.take_place(entries, &team, &id, limits.max_running)?;
    let now = Timestamp::now();
    let row = SandboxRow {
        id,
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
            network: request.network,
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

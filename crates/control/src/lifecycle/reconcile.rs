//! What a starting server makes of what an earlier one left.
//!
//! The database says what was intended, the machines what is. The table of outcomes:
//!
//! | database says | machine lives, running | machine lives, stopped | no machine |
//! |---|---|---|---|
//! | creating | destroyed, nobody was told of it | destroyed | forgotten |
//! | running, resuming | running | running again (`cont`) | its last durable pause, else lost |
//! | pausing | running | running again (`cont`) | its last durable pause, else lost |
//! | paused | stopped and saved | saved | paused |
//! | killing | destroyed | destroyed | destroyed |
//!
//! A machine that no row names is destroyed; a snapshot that nothing names is removed, unless it is a newer pause
//! of a sandbox that has lost its machine. Snapshots that cannot be read are reported and left alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use torpor_machine::Machine;
use torpor_types::{SandboxId, SnapshotId};
use torpor_vault::Snapshot;

use super::Entries;
use super::actor::{Actor, Carrier, chain};
use super::launch::{self, Note};
use super::node::{Node, StartError};
use super::save::Saving;
use crate::registry::{SandboxRow, StoredState};

/// What was found at the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reconciled {
    /// Sandboxes that run, taken over with their machines.
    pub running: usize,
    /// Sandboxes that are paused.
    pub paused: usize,
    /// Sandboxes that ran, lost their machine, and are back at their last durable pause.
    pub rolled_back: Vec<SandboxId>,
    /// Sandboxes that ran, lost their machine, and had never been paused.
    pub lost: Vec<SandboxId>,
}

/// Brings database, machines and vault in line and starts an actor for every sandbox.
#[tracing::instrument(name = "reconcile", skip_all)]
pub(super) async fn reconcile(node: &Arc<Node>, entries: &Entries) -> Result<Reconciled, StartError> {
    let adopted = node.machines.adopt().await.map_err(|error| StartError::Machines(chain(&error)))?;
    let mut machines: HashMap<SandboxId, Machine> = HashMap::new();
    let mut strays = Vec::new();
    let mut bases: HashSet<SnapshotId> = HashSet::new();
    for machine in adopted {
        bases.extend(Note::read(&machine).map(|note| note.base));
        match Note::read(&machine) {
            Some(note) => strays.extend(machines.insert(note.sandbox, machine)),
            None => strays.push(machine),
        }
    }
    let pauses = newest_pauses(node)?;
    let mut reconciled = Reconciled::default();
    for row in node.registry.sandboxes().await? {
        let named = |machine: &Machine| {
            row.state == StoredState::Resuming || row.machine_id.as_ref() == Some(machine.id())
        };
        let machine = match machines.remove(&row.id) {
            Some(machine) if named(&machine) => Some(machine),
            Some(other) => {
                strays.push(other);
                None
            }
            None => None,
        };
        settle(node, entries, row, machine, &pauses, &mut reconciled).await?;
    }
    strays.extend(machines.into_values());
    for machine in strays {
        tracing::info!(machine = %machine.id(), "destroying a machine that no sandbox names");
        machine.destroy().await;
    }
    remove_orphans(node, bases).await?;
    Ok(reconciled)
}

/// Settles one sandbox and starts its actor.
async fn settle(
    node: &Arc<Node>,
    entries: &Entries,
    mut row: SandboxRow,
    machine: Option<Machine>,
    pauses: &HashMap<SandboxId, Snapshot>,
    reconciled: &mut Reconciled,
) -> Result<(), StartError> {
    let before = row.state;
    let carrier = match (before, machine) {
        (StoredState::Creating | StoredState::Killing, machine) => {
            if let Some(machine) = machine {
                machine.destroy().await;
            }
            return Ok(node.registry.delete_sandbox(&row.id).await?);
        }
        (StoredState::Paused, Some(machine)) => {
            let saving = Saving::idle();
            Carrier::Stopped { machine, saving, waiters: Vec::new() }
        }
        (StoredState::Running | StoredState::Pausing | StoredState::Resuming, Some(machine)) => {
            match launch::wake(node, &row, &machine).await {
                Ok(()) => {
                    row.state = StoredState::Running;
                    row.machine_id = Some(machine.id().clone());
                    Carrier::Running { machine, closed: CancellationToken::new() }
                }
                Err(error) => {
                    tracing::error!(sandbox = %row.id, error = %chain(&error), "a machine that was left does not answer");
                    machine.destroy().await;
                    Carrier::Nothing
                }
            }
        }
        (_, None) => Carrier::Nothing,
    };
    if let Carrier::Nothing = carrier {
        // A pause that was published but not recorded is newer than what the row knows.
        if let Some(pause) = pauses.get(&row.id) {
            row.snapshot_id = Some(pause.id().clone());
        }
        row.machine_id = None;
        if row.snapshot_id.is_none() {
            tracing::error!(sandbox = %row.id, "its machine is gone and it was never paused: it is lost");
            reconciled.lost.push(row.id.clone());
            return Ok(node.registry.delete_sandbox(&row.id).await?);
        }
        if !matches!(before, StoredState::Paused | StoredState::Resuming) {
            tracing::error!(sandbox = %row.id, "its machine is gone: it is back at its last durable pause");
            reconciled.rolled_back.push(row.id.clone());
            row.record.end_at = Timestamp::now();
        }
        row.state = StoredState::Paused;
    }
    match row.state {
        StoredState::Running => reconciled.running += 1,
        _ => reconciled.paused += 1,
    }
    node.registry.update_sandbox(&row, before).await?;
    Actor::spawn(node.clone(), entries.clone(), row, carrier);
    Ok(())
}

/// The newest pause of every sandbox that the vault holds.
fn newest_pauses(node: &Node) -> Result<HashMap<SandboxId, Snapshot>, StartError> {
    let listing = node.vault.list()?;
    for (id, error) in &listing.unreadable {
        tracing::error!(snapshot = %id, %error, "a snapshot cannot be read; it is left as it is");
    }
    // Oldest first, so that the newest stays.
    let with_owner = listing.snapshots.into_iter().filter_map(|s| Some((owner(&s)?, s)));
    Ok(with_owner.collect())
}

fn owner(snapshot: &Snapshot) -> Option<SandboxId> {
    serde_json::from_value(snapshot.manifest().subject.get("sandbox")?.get("id")?.clone()).ok()
}

/// Removes snapshots that neither a row names nor a machine maps.
async fn remove_orphans(node: &Arc<Node>, bases: HashSet<SnapshotId>) -> Result<(), StartError> {
    let named = node.referenced_snapshots().await?;
    for snapshot in node.vault.list()?.snapshots {
        if named.contains(snapshot.id()) || bases.contains(snapshot.id()) {
            continue;
        }
        tracing::info!(snapshot = %snapshot.id(), "removing a snapshot that nothing names");
        if let Err(error) = node.vault.remove(snapshot.id()) {
            tracing::error!(snapshot = %snapshot.id(), %error, "it could not be removed");
        }
    }
    Ok(())
}

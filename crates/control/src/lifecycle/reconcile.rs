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
//! A machine that no row names is destroyed. Of snapshots that no row names, only those are removed that a newer one of the
//! same sandbox or template has replaced, or whose sandbox was being destroyed. A pause without a row means that the
//! row was lost (a kill removes the row last): the sandbox is made known again from the snapshot's manifest.
//! Snapshots that cannot be read are reported and left alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use torpor_machine::Machine;
use torpor_types::{SandboxId, SnapshotId};
use torpor_vault::Snapshot;

use super::Entries;
use super::actor::{Actor, Carrier, chain};
use super::launch::Note;
use super::node::{Node, StartError};
use super::save::{Owner, Saving};
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
    /// Paused sandboxes that the database had lost.
    pub recovered: Vec<SandboxId>,
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
    let rows = node.registry.sandboxes().await?;
    let known: HashSet<SandboxId> = rows.iter().map(|row| row.id.clone()).collect();
    for row in rows {
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
    for (id, pause) in &pauses {
        if !known.contains(id) {
            recover(node, entries, pause, &mut reconciled).await?;
        }
    }
    remove_replaced(node, &bases).await?;
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
            match machine.cont().await {
                Ok(()) => {
                    row.state = StoredState::Running;
                    row.machine_id = Some(machine.id().clone());
                    Carrier::running(machine)
                }
                Err(error) => {
                    tracing::error!(sandbox = %row.id, error = %chain(&error), "a machine that was left cannot go on");
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
    let with_owner = listing.snapshots.into_iter().filter_map(|s| Some((Owner::of(&s)?.id, s)));
    Ok(with_owner.collect())
}

/// Makes a sandbox known again whose row was lost.
async fn recover(
    node: &Arc<Node>,
    entries: &Entries,
    pause: &Snapshot,
    reconciled: &mut Reconciled,
) -> Result<(), StartError> {
    let Some(Owner { id, team_id, record }) = Owner::of(pause) else { return Ok(()) };
    let row = SandboxRow {
        id: id.clone(),
        // With the database the team may be lost too: then it is the default team's.
        team_id: node.registry.team_or_default(&team_id, crate::keys::DEFAULT_TEAM).await?,
        state: StoredState::Paused,
        machine_id: None,
        snapshot_id: Some(pause.id().clone()),
        record,
    };
    tracing::warn!(sandbox = %id, snapshot = %pause.id(), "the database did not know this paused sandbox; it does again");
    node.registry.insert_sandbox(&row).await?;
    Actor::spawn(node.clone(), entries.clone(), row, Carrier::Nothing);
    reconciled.recovered.push(id);
    Ok(())
}

/// Removes snapshots that a newer one has replaced and that no machine maps.
async fn remove_replaced(node: &Arc<Node>, bases: &HashSet<SnapshotId>) -> Result<(), StartError> {
    let named = node.referenced_snapshots().await?;
    let templates = node.registry.templates().await?;
    for snapshot in node.vault.list()?.snapshots {
        if named.contains(snapshot.id()) || bases.contains(snapshot.id()) {
            continue;
        }
        // Every pause with an owner has a row by now, or its sandbox was destroyed just before.
        let is_pause = Owner::of(&snapshot).is_some();
        let subject = &snapshot.manifest().subject;
        let is_old_build = templates.iter().any(|template| {
            subject["template"]["name"] == template.name.as_str()
                && snapshot.manifest().created_at < template.created_at
        });
        if !is_pause && !is_old_build {
            tracing::warn!(snapshot = %snapshot.id(), "the database does not know this snapshot; `torpor setup` makes a template's known again");
            continue;
        }
        tracing::info!(snapshot = %snapshot.id(), "removing a snapshot that a newer one has replaced");
        if let Err(error) = node.vault.remove(snapshot.id()) {
            tracing::error!(snapshot = %snapshot.id(), %error, "it could not be removed");
        }
    }
    Ok(())
}

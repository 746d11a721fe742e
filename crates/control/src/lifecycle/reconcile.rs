//! What a starting server makes of what an earlier one left.
//!
//! The database says what was intended, the machines what is. The table of outcomes:
//!
//! | database says | machine lives, running | machine lives, stopped | no machine |
//! |---|---|---|---|
//! | creating | destroyed, nobody was told of it | destroyed | forgotten |
//! | running | running | running again (`cont`) | its last durable pause, else lost |
//! | resuming | destroyed; paused, as before | destroyed; paused, as before | paused |
//! | pausing | running | running again (`cont`) | its last durable pause, else lost |
//! | paused | stopped and saved | saved | paused |
//! | killing | destroyed | destroyed | destroyed |
//!
//! A machine that no row names is destroyed. Of snapshots that no row names, only those are removed that a newer one of the
//! same sandbox or template has replaced, or whose sandbox was being destroyed. A pause without a row means that the
//! row was lost (a kill removes the row last): the sandbox is made known again from the snapshot's manifest.
//! Snapshots that cannot be read are reported and left alone.
//!
//! Snapshots that users took are treated alike: one without a row gets it again, a row without a snapshot (it was being
//! deleted) goes. What a fork left goes when the last of its children does not stand on it any more.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use torpor_machine::Machine;
use torpor_types::{SandboxId, SnapshotId};
use torpor_vault::{Listing, Snapshot};

use super::Entries;
use super::actor::{Actor, Carrier, chain};
use super::egress;
use super::launch::Note;
use super::node::{Node, StartError};
use super::rebuild;
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
    for machine in adopted {
        match Note::read(&machine) {
            Some(note) => strays.extend(machines.insert(note.sandbox, machine)),
            None => strays.push(machine),
        }
    }
    // Once, and before any actor runs: what they publish from now on is theirs to look after.
    let vault = node.vault.clone();
    let listing = tokio::task::spawn_blocking(move || vault.list()).await.map_err(StartError::Listing)??;
    let pauses = newest_pauses(&listing);
    let mut reconciled = Reconciled::default();
    let mut last_pauses = HashSet::new();
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
        last_pauses.extend(settle(node, entries, row, machine, &pauses, &mut reconciled).await?);
    }
    strays.extend(machines.into_values());
    for machine in strays {
        tracing::info!(machine = %machine.id(), "destroying a machine that no sandbox names");
        machine.destroy().await;
    }
    for (id, pause) in &pauses {
        if !known.contains(id) {
            recover(node, entries, pause, &mut reconciled).await?;
            last_pauses.insert(pause.id().clone());
        }
    }
    settle_snapshots(node, &listing).await?;
    remove_replaced(node, &listing, last_pauses).await?;
    let ids = entries.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
    node.telemetry.keep_only(ids).await;
    Ok(reconciled)
}

/// Settles one sandbox and starts its actor. Answers which snapshot is its last pause.
async fn settle(
    node: &Arc<Node>,
    entries: &Entries,
    mut row: SandboxRow,
    machine: Option<Machine>,
    pauses: &HashMap<SandboxId, &Snapshot>,
    reconciled: &mut Reconciled,
) -> Result<Option<SnapshotId>, StartError> {
    let found = row.clone();
    let before = found.state;
    if let (Some(machine), false) = (&machine, matches!(before, StoredState::Creating | StoredState::Killing))
    {
        // Its rules are those of the last server. Where they lead to an egress proxy, there has been none since.
        if let Err(error) = egress::apply(node, machine, &row.record).await {
            tracing::error!(sandbox = %row.id, error = %chain(&error), "what a sandbox reaches could not be set anew");
        }
    }
    let carrier = match (before, machine) {
        (StoredState::Creating | StoredState::Killing, machine) => {
            if let Some(machine) = machine {
                machine.destroy().await;
            }
            node.registry.delete_sandbox(&row.id).await?;
            return Ok(None);
        }
        (StoredState::Paused, Some(machine)) => {
            let saving = Saving::idle();
            Carrier::Stopped { machine, saving, waiters: Vec::new() }
        }
        // Nobody was told that it runs, and the row has the deadline of before the pause: let run, it would be killed by that.
        (StoredState::Resuming, Some(machine)) => {
            machine.destroy().await;
            Carrier::Nothing
        }
        (StoredState::Running | StoredState::Pausing, Some(machine)) => match machine.cont().await {
            Ok(()) => {
                row.state = StoredState::Running;
                row.record.filesystem_only = false;
                row.machine_id = Some(machine.id().clone());
                Carrier::running(machine)
            }
            Err(error) => {
                tracing::error!(sandbox = %row.id, error = %chain(&error), "a machine that was left cannot go on");
                machine.destroy().await;
                Carrier::Nothing
            }
        },
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
            node.registry.delete_sandbox(&row.id).await?;
            return Ok(None);
        }
        if !matches!(before, StoredState::Paused | StoredState::Resuming) {
            tracing::error!(sandbox = %row.id, "its machine is gone: it is back at its last durable pause");
            reconciled.rolled_back.push(row.id.clone());
            row.record.end_at = Timestamp::now();
        }
        row.state = StoredState::Paused;
    }
    if let Carrier::Nothing = carrier {
        node.telemetry.set_back(&row.id);
    }
    match row.state {
        StoredState::Running => reconciled.running += 1,
        _ => reconciled.paused += 1,
    }
    // Each write is flushed: of a thousand that are paused as they were, none is needed.
    if row != found {
        node.registry.update_sandbox(&row, before).await?;
    }
    let last_pause = row.snapshot_id.clone();
    let base = match &carrier {
        Carrier::Running { machine, .. } | Carrier::Stopped { machine, .. } => Note::read(machine),
        Carrier::Nothing => None,
    };
    let base = base.map(|note| node.bases.hold(&note.base));
    Actor::spawn(node.clone(), entries.clone(), row, carrier, base);
    Ok(last_pause)
}

/// The newest pause of every sandbox that the vault holds.
fn newest_pauses(listing: &Listing) -> HashMap<SandboxId, &Snapshot> {
    for (id, error) in &listing.unreadable {
        tracing::error!(snapshot = %id, %error, "a snapshot cannot be read; it is left as it is");
    }
    // Oldest first, so that the newest stays.
    listing.snapshots.iter().filter_map(|s| Some((Owner::of(s)?.id, s))).collect()
}

/// Makes a sandbox known again whose row was lost.
async fn recover(
    node: &Arc<Node>,
    entries: &Entries,
    pause: &Snapshot,
    reconciled: &mut Reconciled,
) -> Result<(), StartError> {
    let Some(owner) = Owner::of(pause) else { return Ok(()) };
    let row = rebuild::sandbox_row(&node.registry, owner, pause).await?;
    let id = row.id.clone();
    tracing::warn!(sandbox = %id, snapshot = %pause.id(), "the database did not know this paused sandbox; it does again");
    node.registry.insert_sandbox(&row).await?;
    Actor::spawn(node.clone(), entries.clone(), row, Carrier::Nothing, None);
    reconciled.recovered.push(id);
    Ok(())
}

/// Brings the rows of users' snapshots in line with the vault: rows that were lost are made again, rows whose snapshot
/// was being deleted go.
async fn settle_snapshots(node: &Node, listing: &Listing) -> Result<(), StartError> {
    let there: HashSet<&SnapshotId> = listing
        .snapshots
        .iter()
        .map(Snapshot::id)
        .chain(listing.unreadable.iter().map(|(id, _)| id))
        .collect();
    let rows = node.registry.snapshots().await?;
    for row in &rows {
        if row.snapshot_id.as_ref().is_none_or(|id| !there.contains(id)) {
            tracing::info!(snapshot = %row.id, "forgetting a snapshot that was being deleted");
            node.registry.delete_snapshot(&row.id).await?;
        }
    }
    // Oldest first: of one that was taken again the newest stays.
    for snapshot in &listing.snapshots {
        let Some(row) = rebuild::taken_by_user(snapshot) else { continue };
        if rows.iter().any(|known| known.id == row.id) {
            continue;
        }
        tracing::warn!(snapshot = %row.id, "the database did not know this snapshot; it does again");
        let row = rebuild::snapshot_row(&node.registry, row, snapshot).await?;
        node.registry.put_snapshot(&row).await?;
    }
    Ok(())
}

/// Removes snapshots that nobody names: now, or when no machine stands on them any more. `pauses` are named by
/// sandboxes; one that is replaced meanwhile is its actor's to remove.
async fn remove_replaced(
    node: &Arc<Node>,
    listing: &Listing,
    pauses: HashSet<SnapshotId>,
) -> Result<(), StartError> {
    let mut named = pauses;
    let templates = node.registry.templates().await?;
    named.extend(templates.iter().map(|template| template.snapshot_id.clone()));
    named.extend(node.registry.snapshots().await?.into_iter().filter_map(|row| row.snapshot_id));
    for snapshot in &listing.snapshots {
        if named.contains(snapshot.id()) {
            continue;
        }
        // Every pause with an owner has a row by now, or its sandbox was destroyed just before; so has every snapshot.
        let subject = &snapshot.manifest().subject;
        let is_known = ["sandbox", "snapshot", "fork"].iter().any(|kind| subject.get(kind).is_some());
        let is_old_build = templates.iter().any(|template| {
            subject["template"]["name"] == template.name.as_str()
                && snapshot.manifest().created_at < template.created_at
        });
        if !is_known && !is_old_build {
            tracing::warn!(snapshot = %snapshot.id(), "the database does not know this snapshot; `torpor setup` makes a template's known again");
            continue;
        }
        tracing::info!(snapshot = %snapshot.id(), "letting go of a snapshot that nothing names");
        node.bases.release(snapshot.id().clone()).await;
    }
    Ok(())
}

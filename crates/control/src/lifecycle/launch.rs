//! From a snapshot to a running machine.

use serde::{Deserialize, Serialize};
use torpor_machine::{LoadSource, Machine};
use torpor_network::EgressPolicy;
use torpor_types::{SandboxId, SnapshotId};

use super::actor::chain;
use super::api::LifecycleError;
use super::node::Node;
use crate::registry::SandboxRow;

/// Why a machine could not be brought to run. None is left.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("snapshot {id} does not fit this host: {why}")]
    Mismatch { id: SnapshotId, why: String },
    #[error("{step}: {why}")]
    Step { step: &'static str, why: String },
}

/// What is written into a machine's record, so that a new server knows what the machine is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The sandbox it carries.
    pub(super) sandbox: SandboxId,
    /// The snapshot whose memory it maps: has to be kept as long as the machine lives.
    pub(super) base: SnapshotId,
}

// === impl Note ===

impl Note {
    /// What `machine` is for; `None` if its record is not ours.
    pub(super) fn read(machine: &Machine) -> Option<Note> {
        serde_json::from_value(machine.note()).ok()
    }
}

impl From<LaunchError> for LifecycleError {
    fn from(error: LaunchError) -> LifecycleError {
        LifecycleError::Failed { what: "The sandbox could not be started", why: chain(&error) }
    }
}

/// Starts a machine from `snapshot` for the sandbox of `row`.
#[tracing::instrument(name = "launch", skip_all)]
pub(super) async fn launch(
    node: &Node,
    row: &SandboxRow,
    snapshot: &SnapshotId,
) -> Result<Machine, LaunchError> {
    let note = Note { sandbox: row.id.clone(), base: snapshot.clone() };
    let note = serde_json::to_value(&note).map_err(step("describing the machine"))?;
    let (opened, idle) = tokio::join!(open(node, snapshot, note), node.machines.claim(&row.record.shape));
    let idle = idle.map_err(step("preparing a machine"))?;
    let source = opened?;
    let machine = idle.load(source).await.map_err(step("loading the snapshot into the machine"))?;
    match let_run(row, &machine).await {
        Ok(()) => Ok(machine),
        Err(error) => {
            let words = machine.last_words();
            machine.destroy().await;
            Err(match error {
                LaunchError::Step { step, why } if !words.is_empty() => {
                    LaunchError::Step { step, why: format!("{why} (QEMU: {words})") }
                }
                other => other,
            })
        }
    }
}

/// Shuts the sandbox off from the internet if it is to be, and lets it run.
async fn let_run(row: &SandboxRow, machine: &Machine) -> Result<(), LaunchError> {
    if !row.record.allow_internet {
        let policy = EgressPolicy { allow_internet: false };
        machine
            .network()
            .set_egress(&policy)
            .await
            .map_err(step("shutting the sandbox off from the internet"))?;
    }
    machine.cont().await.map_err(step("starting the machine"))
}

async fn open(node: &Node, id: &SnapshotId, note: serde_json::Value) -> Result<LoadSource, LaunchError> {
    let (vault, id, host) = (node.vault.clone(), id.clone(), node.machines.facts().clone());
    let opening = tokio::task::spawn_blocking(move || {
        let snapshot = vault.get(&id).map_err(step("opening the snapshot"))?;
        if let Some(why) = super::node::mismatch(&snapshot.manifest().machine, &host) {
            return Err(LaunchError::Mismatch { id, why });
        }
        Ok(LoadSource {
            disk: snapshot.open_disk().map_err(step("opening the snapshot's disk"))?,
            memory: snapshot.open_memory().map_err(step("opening the snapshot's memory"))?,
            state: snapshot.read_state().map_err(step("reading the snapshot's device state"))?,
            note,
        })
    });
    opening.await.map_err(step("opening the snapshot"))?
}

fn step<E: std::error::Error + 'static>(step: &'static str) -> impl Fn(E) -> LaunchError {
    move |error| LaunchError::Step { step, why: chain(&error) }
}

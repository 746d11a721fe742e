//! From a snapshot to a running machine: resumed if the snapshot has memory, booted if not.

use serde::{Deserialize, Serialize};
use torpor_machine::{HostFacts, LoadSource, Machine};
use torpor_types::{SandboxId, SnapshotId};
use torpor_vault::{MachineFacts, ManifestError, ReadError, Snapshot, interruption};

use super::actor::chain;
use super::api::LifecycleError;
use super::bases::Base;
use super::boot::NoKernel;
use super::egress;
use super::node::Node;
use crate::registry::SandboxRow;

/// Why a machine could not be brought to run. None is left.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("snapshot {id} does not fit this host: {why}")]
    Mismatch { id: SnapshotId, why: String },
    #[error("snapshot {id} cannot be booted: {why}")]
    NoKernel { id: SnapshotId, why: NoKernel },
    #[error("{0}")]
    OfNewer(ReadError),
    #[error("{step}: {why}")]
    Step { step: &'static str, why: String },
}

/// How a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Where its snapshot was taken; one without memory boots.
    AsSaved,
    /// It boots from the snapshot's disk, whatever else there is.
    Boot,
}

/// A machine that was let run, and the snapshot it stands on.
pub(super) struct Launched {
    pub(super) machine: Machine,
    pub(super) base: Base,
}

/// What is written into a machine's record, so that a new server knows what the machine is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The sandbox it carries.
    pub(super) sandbox: SandboxId,
    /// The snapshot it came from, whose memory it maps: has to be kept as long as the machine lives.
    pub(super) base: SnapshotId,
    /// What the machine is, where its base does not say so: of one that was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) booted: Option<MachineFacts>,
}

// === impl Note ===

impl Note {
    /// What `machine` is for; `None` if its record is not ours.
    pub(super) fn read(machine: &Machine) -> Option<Note> {
        serde_json::from_value(machine.note()).ok()
    }

    fn to_json(&self) -> Result<serde_json::Value, LaunchError> {
        serde_json::to_value(self).map_err(step("describing the machine"))
    }
}

impl From<LaunchError> for LifecycleError {
    fn from(error: LaunchError) -> LifecycleError {
        let (what, why) = ("The sandbox could not be started", chain(&error));
        match error {
            LaunchError::Mismatch { .. } | LaunchError::NoKernel { .. } | LaunchError::OfNewer(_) => {
                LifecycleError::Unfit { what, why }
            }
            LaunchError::Step { .. } => LifecycleError::Failed { what, why },
        }
    }
}

/// Starts a machine from `snapshot` for the sandbox of `row`.
#[tracing::instrument(name = "launch", skip_all)]
pub(super) async fn launch(
    node: &Node,
    row: &SandboxRow,
    snapshot: &SnapshotId,
    start: Start,
) -> Result<Launched, LaunchError> {
    interruption::step("launch.1");
    // Held from before it is opened, so that it cannot go meanwhile.
    let base = node.bases.hold(snapshot);
    let (vault, id) = (node.vault.clone(), snapshot.clone());
    let found = tokio::task::spawn_blocking(move || vault.get(&id)).await.map_err(step(OPENING))?;
    let snapshot = found.map_err(|error| match error {
        ReadError::Manifest { cause: ManifestError::UnknownFormat { .. }, .. } => LaunchError::OfNewer(error),
        error => step(OPENING)(error),
    })?;
    let machine = match start {
        Start::AsSaved if !snapshot.manifest().is_filesystem_only() => resume(node, row, snapshot).await?,
        Start::AsSaved | Start::Boot => boot(node, row, snapshot).await?,
    };
    interruption::step("launch.2");
    match let_run(node, row, &machine).await {
        Ok(()) => Ok(Launched { machine, base }),
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

/// A stopped machine with the memory of `snapshot`.
async fn resume(node: &Node, row: &SandboxRow, snapshot: Snapshot) -> Result<Machine, LaunchError> {
    let note = Note { sandbox: row.id.clone(), base: snapshot.id().clone(), booted: None }.to_json()?;
    let host = node.machines.facts().clone();
    // Before a machine is taken for it, and perhaps waited for.
    require_fit(&snapshot, &host)?;
    let (opened, idle) = tokio::join!(open(host, snapshot, note), node.machines.claim(&row.record.shape));
    let idle = idle.map_err(step("preparing a machine"))?;
    idle.load(opened?).await.map_err(step("loading the snapshot into the machine"))
}

/// A machine in front of its kernel's first instruction, with the disk of `snapshot`.
#[tracing::instrument(name = "launch.boot", skip_all)]
async fn boot(node: &Node, row: &SandboxRow, snapshot: Snapshot) -> Result<Machine, LaunchError> {
    let host = node.machines.facts();
    let made = &snapshot.manifest().machine;
    let facts = MachineFacts {
        shape: made.shape,
        accelerator: host.accelerator,
        machine_type: host.machine_type.clone(),
        cpu_model: host.cpu_model.clone(),
        qemu_version: host.qemu_version.clone(),
        kernel_blake3: made.kernel_blake3.clone(),
        agent_version: torpor_envd_api::ENVD_VERSION.to_owned(),
        tsc_khz: host.tsc_khz,
    };
    let note =
        Note { sandbox: row.id.clone(), base: snapshot.id().clone(), booted: Some(facts) }.to_json()?;
    let disk = snapshot.open_disk().map_err(step("opening the snapshot's disk"))?;
    let source = node
        .kernels
        .source(&made.kernel_blake3, host.accelerator, disk)
        .map_err(|why| LaunchError::NoKernel { id: snapshot.id().clone(), why })?;
    let machine =
        node.machines.boot(&row.record.shape, source).await.map_err(step("preparing a machine to boot"))?;
    match machine.set_note(note) {
        Ok(()) => Ok(machine),
        Err(error) => {
            machine.destroy().await;
            Err(step("recording what the machine is for")(error))
        }
    }
}

/// Puts in force what the sandbox reaches, and lets it run.
async fn let_run(node: &Node, row: &SandboxRow, machine: &Machine) -> Result<(), LaunchError> {
    egress::apply_to_new(node, machine, &row.record)
        .await
        .map_err(step("setting what the sandbox reaches"))?;
    machine.cont().await.map_err(step("starting the machine"))
}

/// Refuses memory that could not be resumed on `host`.
fn require_fit(snapshot: &Snapshot, host: &HostFacts) -> Result<(), LaunchError> {
    match super::node::mismatch(&snapshot.manifest().machine, host) {
        Some(why) => Err(LaunchError::Mismatch { id: snapshot.id().clone(), why }),
        None => Ok(()),
    }
}

/// Opens a snapshot for a machine of `host`.
pub(super) async fn open(
    host: HostFacts,
    snapshot: Snapshot,
    note: serde_json::Value,
) -> Result<LoadSource, LaunchError> {
    let opening = tokio::task::spawn_blocking(move || {
        require_fit(&snapshot, &host)?;
        Ok(LoadSource {
            disk: snapshot.open_disk().map_err(step("opening the snapshot's disk"))?,
            memory: snapshot.open_memory().map_err(step("opening the snapshot's memory"))?,
            state: snapshot.read_state().map_err(step("reading the snapshot's device state"))?,
            note,
        })
    });
    opening.await.map_err(step(OPENING))?
}

const OPENING: &str = "opening the snapshot";

fn step<E: std::error::Error + 'static>(step: &'static str) -> impl Fn(E) -> LaunchError {
    move |error| LaunchError::Step { step, why: chain(&error) }
}

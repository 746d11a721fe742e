//! Saving a stopped machine as a snapshot, in the background.
//!
//! ```text
//! copying:  clone base memory ─ write dirty pages ─ clone disk ─ write device state
//!           (shared memory: flush RAM file ─ clone it ─ …)
//! copied:   flush, sums, manifest, rename            (Vault: Staging::publish)
//! ```
//!
//! A resume that comes while *copying* cancels the save: what was copied is no whole and is thrown away. One that comes
//! later finds a whole, which the actor removes again, because the machine has run past it.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use torpor_machine::{Ahead, DeviceState, Machine, SaveObserver, SaveTarget};
use torpor_types::{SandboxId, SnapshotId, TeamId};
use torpor_vault::{Claim, Kind, MachineFacts, ManifestDraft, Snapshot, Staging, Written, interruption};

use super::actor::{Event, chain};
use super::launch::Note;
use super::node::Node;
use crate::registry::{RegistryError, SandboxRecord, SandboxRow};

/// How long a save that failed waits before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);

const COPYING: u8 = 0;
const COPIED: u8 = 1;
const CANCELLED: u8 = 2;

/// Why a stopped machine could not be saved. The machine is kept, so nothing is lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error("{0}")]
    NoRoom(#[from] torpor_vault::NoRoom),
    #[error("{step}: {why}")]
    Step { step: &'static str, why: String },
    #[error("the save was overtaken by a resume")]
    Cancelled,
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// A save that is under way. Its result comes to the actor as an [`Event::Saved`].
pub(super) struct Saving {
    progress: Arc<AtomicU8>,
    cancelled: CancellationToken,
}

/// Whose pause a snapshot is: the `sandbox` of its manifest's subject, from which a lost row is made again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) id: SandboxId,
    pub(super) team_id: TeamId,
    pub(super) record: SandboxRecord,
}

/// What a snapshot keeps of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Memory, disk and device state: the machine goes on where it was.
    Everything,
    /// The disk alone: the machine boots.
    Disk,
}

/// Has memory hashed while it is copied.
struct Hashing<'a>(&'a Written);

impl SaveObserver for Hashing<'_> {
    fn wrote(&self, offset: u64, content: &[u8]) {
        self.0.wrote(offset, content);
    }

    fn punched(&self, offset: u64, len: u64) {
        self.0.punched(offset, len);
    }
}

/// A copy that is being made of a machine. Nothing is left of one that is dropped.
pub(super) struct Copying {
    staging: Staging,
    base: Snapshot,
    facts: MachineFacts,
    /// `None`: only the disk is kept.
    memory: Option<File>,
    ahead: Ahead,
    room: Claim,
}

/// A copy of a stopped machine that is not durable yet. Nothing is left of one that is dropped.
pub(super) struct Copied {
    staging: Staging,
    base: Snapshot,
    facts: MachineFacts,
    stopped_at: Timestamp,
    /// Until it is on the disk, the file system may not know that the room is taken.
    _room: Claim,
}

struct Job {
    node: Arc<Node>,
    row: SandboxRow,
    machine: Machine,
    /// `None`: the machine was found stopped by a new server, or saving it failed before. It knows its state, or is
    /// stopped and captured anew. With it goes the room that was promised to the save.
    captured: Option<(DeviceState, Claim)>,
    progress: Arc<AtomicU8>,
}

// === impl Saving ===

impl Saving {
    /// Stands for a save that has not been started yet.
    pub(super) fn idle() -> Saving {
        Saving { progress: Arc::new(AtomicU8::new(COPYING)), cancelled: CancellationToken::new() }
    }

    /// Starts saving at once.
    pub(super) fn start(
        node: Arc<Node>,
        row: SandboxRow,
        machine: Machine,
        captured: Option<(DeviceState, Claim)>,
        epoch: u64,
        events: mpsc::UnboundedSender<Event>,
    ) -> Saving {
        Self::after(Duration::ZERO, Job::new(node, row, machine, captured), epoch, events)
    }

    /// Starts saving after a while, because it failed just now.
    pub(super) fn retry(
        node: Arc<Node>,
        row: SandboxRow,
        machine: Machine,
        epoch: u64,
        events: mpsc::UnboundedSender<Event>,
    ) -> Saving {
        Self::after(RETRY_AFTER, Job::new(node, row, machine, None), epoch, events)
    }

    fn after(delay: Duration, job: Job, epoch: u64, events: mpsc::UnboundedSender<Event>) -> Saving {
        let progress = job.progress.clone();
        let cancelled = CancellationToken::new();
        let wakened = cancelled.clone();
        let span = tracing::Span::current();
        tokio::spawn(async move {
            // A save that is cancelled while it waits ends at once.
            let _ = tokio::time::timeout(delay, wakened.cancelled()).await;
            let blocking = tokio::task::spawn_blocking(move || span.in_scope(|| job.run()));
            let result = blocking.await.unwrap_or_else(|panic| {
                Err(SaveError::Step { step: "saving", why: format!("it panicked: {panic}") })
            });
            // An actor that ended wants no result; its sandbox is destroyed.
            let _ = events.send(Event::Saved { epoch, result });
        });
        Saving { progress, cancelled }
    }

    /// Stops the save if it has not copied everything yet.
    pub(super) fn cancel(&self) {
        let _ = self.progress.compare_exchange(COPYING, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        self.cancelled.cancel();
    }
}

// === impl Owner ===

impl Owner {
    /// Whose pause `snapshot` is; `None` if it is something else.
    pub(super) fn of(snapshot: &Snapshot) -> Option<Owner> {
        serde_json::from_value(snapshot.manifest().subject.get("sandbox")?.clone()).ok()
    }
}

// === impl Job ===

impl Job {
    fn new(
        node: Arc<Node>,
        row: SandboxRow,
        machine: Machine,
        captured: Option<(DeviceState, Claim)>,
    ) -> Job {
        Job { node, row, machine, captured, progress: Arc::new(AtomicU8::new(COPYING)) }
    }

    #[tracing::instrument(name = "sandbox.save", skip_all)]
    fn run(self) -> Result<SnapshotId, SaveError> {
        let Job { node, row, machine, captured, progress } = self;
        let cancelled = || progress.load(Ordering::Acquire) == CANCELLED;
        if cancelled() {
            return Err(SaveError::Cancelled);
        }
        let (state, room) = match captured {
            Some(captured) => captured,
            None => {
                let room = node.vault.claim_room(machine.room_to_save())?;
                let capturing = tokio::runtime::Handle::current().block_on(machine.stop_and_capture());
                (capturing.map_err(step("capturing the device state"))?, room)
            }
        };
        let keep = Keep::of(&row.record);
        let copied = Copying::begin(&node, &machine, keep, room)?.finish(&machine, &state, &cancelled)?;
        if progress.compare_exchange(COPYING, COPIED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(SaveError::Cancelled);
        }
        let owner = Owner { id: row.id, team_id: row.team_id, record: row.record };
        let snapshot = copied.publish(serde_json::json!({ "sandbox": owner }))?;
        tracing::info!(%snapshot, "the pause is durable");
        Ok(snapshot)
    }
}

// === impl Keep ===

impl Keep {
    /// What the pause of such a sandbox keeps.
    pub(super) fn of(record: &SandboxRecord) -> Keep {
        if record.filesystem_only { Keep::Disk } else { Keep::Everything }
    }
}

// === impl Copying ===

impl Copying {
    /// Begins a copy of a machine, which may run, in `room`, which is promised to it.
    pub(super) fn begin(
        node: &Node,
        machine: &Machine,
        keep: Keep,
        room: Claim,
    ) -> Result<Copying, SaveError> {
        let note = Note::read(machine)
            .ok_or(SaveError::Step { step: "reading the machine's note", why: "it has none".to_owned() })?;
        let base = node.vault.get(&note.base).map_err(step("opening the snapshot the machine came from"))?;
        let staging = node.vault.stage(SnapshotId::random()).map_err(step("staging a snapshot"))?;
        let memory = match keep {
            Keep::Disk => None,
            // One that was booted has nothing of its base's memory, also where its base has some.
            Keep::Everything
                if note.booted.is_some()
                    || base.manifest().is_filesystem_only()
                    || !machine.saves_onto_base() =>
            {
                let bytes = machine.shape().memory_bytes();
                Some(staging.memory_file(bytes).map_err(step("making the memory file"))?)
            }
            Keep::Everything => {
                let memory = base.open_memory().map_err(step("opening the base memory"))?;
                Some(staging.clone_memory(&memory).map_err(step("cloning the base memory"))?)
            }
        };
        let facts = note.booted.unwrap_or_else(|| base.manifest().machine.clone());
        Ok(Copying { staging, base, facts, memory, ahead: Ahead::default(), room })
    }

    /// Copies and flushes what it can of a machine that runs, so that the machine need not stand still for long.
    pub(super) fn copy_ahead(&mut self, machine: &Machine) -> Result<(), SaveError> {
        if let Some(memory) = &self.memory {
            let into = SaveTarget { file: memory, observer: &Hashing(self.staging.memory_written()) };
            self.ahead = machine.copy_memory_ahead(into).map_err(step("copying memory ahead"))?;
        }
        machine.flush_disk_ahead().map_err(step("flushing the disk"))
    }

    /// Copies the rest of the machine, which has stopped; it may go on afterwards.
    pub(super) fn finish(
        self,
        machine: &Machine,
        state: &DeviceState,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Copied, SaveError> {
        let Copying { staging, base, facts, memory, ahead, room } = self;
        let stopped_at = Timestamp::now();
        if let Some(memory) = memory {
            let into = SaveTarget { file: &memory, observer: &Hashing(staging.memory_written()) };
            let saved = machine.save_memory(into, ahead, cancelled).map_err(step("saving dirtied memory"))?;
            tracing::debug!(?saved, "memory copied");
            interruption::step("save.1");
            staging.write_state(state.as_bytes()).map_err(step("writing the device state"))?;
        }
        let disk = machine.open_disk().map_err(step("opening the machine's disk"))?;
        staging.clone_disk(&disk).map_err(step("cloning the disk"))?;
        interruption::step("save.2");
        Ok(Copied { staging, base, facts, stopped_at, _room: room })
    }
}

// === impl Copied ===

impl Copied {
    /// Makes the copy durable and gives it its place in the vault.
    pub(super) fn publish(self, subject: serde_json::Value) -> Result<SnapshotId, SaveError> {
        let Copied { staging, base, facts, stopped_at, _room } = self;
        let draft = ManifestDraft { kind: Kind::Pause, created_at: stopped_at, machine: facts, subject };
        let snapshot = staging.publish(draft, Some(&base)).map_err(step("publishing the snapshot"))?;
        Ok(snapshot.id().clone())
    }
}

fn step<E: std::error::Error + 'static>(step: &'static str) -> impl Fn(E) -> SaveError {
    move |error| SaveError::Step { step, why: chain(&error) }
}

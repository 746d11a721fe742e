//! Pausing, and what follows in the background until the pause is durable.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use torpor_envd_api::telemetry::LogLevel;
use torpor_machine::{DeviceState, Machine};
use torpor_types::SnapshotId;
use torpor_vault::{Claim, interruption};

use super::{Actor, Carrier, Event, Reply, Window, answer, chain};
use crate::lifecycle::api::LifecycleError;
use crate::lifecycle::save::{SaveError, Saving};
use crate::registry::StoredState;

// === impl Actor ===

impl Actor {
    pub(super) async fn pause_or_join(
        &mut self,
        arrived: Instant,
        keep_memory: bool,
    ) -> Result<(), LifecycleError> {
        if self.row.state == StoredState::Paused && Window::contains(&self.last_pause, arrived) {
            return Ok(());
        }
        let started = Instant::now();
        let outcome = self.pause(keep_memory).await;
        if outcome.is_ok() {
            self.last_pause = Some(Window::since(started));
        }
        outcome
    }

    /// Stops the machine, captures its state, and starts to save it. On an error the sandbox runs on.
    #[tracing::instrument(name = "sandbox.pause", skip_all)]
    pub(super) async fn pause(&mut self, keep_memory: bool) -> Result<(), LifecycleError> {
        let (machine, closed) = match &self.carrier {
            Carrier::Running { machine, closed, .. } => (machine.clone(), closed.clone()),
            Carrier::Nothing | Carrier::Stopped { .. } => {
                return Err(LifecycleError::AlreadyPaused(self.row.id.clone()));
            }
        };
        let room = self.node.claim_room(machine.room_to_save()).await?;
        let before = self.row.clone();
        if !keep_memory {
            self.freeze(&machine).await?;
        }
        self.row.record.filesystem_only = !keep_memory;
        self.row.state = StoredState::Pausing;
        self.publish();
        interruption::step("pause.1");
        // Stopping can be taken back, so the intent is written while the machine stops.
        let (recorded, captured) = tokio::join!(
            self.node.registry.update_sandbox(&self.row, StoredState::Running),
            machine.stop_and_capture(),
        );
        let state = match (recorded, captured) {
            (Ok(_), Ok(state)) => state,
            (recorded, captured) => {
                let what = "The sandbox could not be paused";
                if let Err(error) = machine.cont().await {
                    tracing::error!(%error, "a machine that could not be paused does not run on either");
                }
                if !keep_memory {
                    self.thaw(&machine).await;
                }
                self.row = before;
                self.record(StoredState::Pausing).await?;
                recorded?;
                return Err(LifecycleError::Failed {
                    what,
                    why: captured.map_or_else(|error| chain(&error), |_| String::new()),
                });
            }
        };
        interruption::step("pause.2");
        closed.cancel();
        if let Some(recording) = self.recording.take() {
            recording.paused();
        }
        self.row.state = StoredState::Paused;
        self.row.record.end_at = Timestamp::now();
        // From here on it is paused, whatever the database says of it: reconciliation comes to the same.
        if let Err(error) = self.record(StoredState::Pausing).await {
            tracing::error!(%error, "the pause could not be recorded");
        }
        interruption::step("pause.3");
        let saving = self.start_saving(&machine, Some((state, room)));
        self.carrier = Carrier::Stopped { machine, saving, waiters: Vec::new() };
        self.publish();
        Ok(())
    }

    pub(super) fn start_saving(
        &mut self,
        machine: &Machine,
        captured: Option<(DeviceState, Claim)>,
    ) -> Saving {
        self.epoch += 1;
        self.saves_under_way += 1;
        Saving::start(
            self.node.clone(),
            self.row.clone(),
            machine.clone(),
            captured,
            self.epoch,
            self.events.clone(),
        )
    }

    pub(super) fn restart_saving(&mut self) {
        if let Carrier::Stopped { machine, waiters, .. } =
            std::mem::replace(&mut self.carrier, Carrier::Nothing)
        {
            let saving = self.start_saving(&machine, None);
            self.carrier = Carrier::Stopped { machine, saving, waiters };
            self.publish();
        }
    }

    pub(super) fn answer_when_durable(&mut self, reply: Reply<()>) {
        match &mut self.carrier {
            Carrier::Stopped { waiters, .. } => waiters.push(reply),
            Carrier::Nothing | Carrier::Running { .. } => answer(reply, Ok(())),
        }
    }

    pub(super) async fn saved(&mut self, epoch: u64, result: Result<SnapshotId, SaveError>) {
        self.saves_under_way -= 1;
        match result {
            result if epoch == self.epoch => self.finish_pause(result).await,
            // Overtaken by a resume: the machine runs on from the snapshot it had.
            Ok(unwanted) => self.remove_snapshot(unwanted).await,
            Err(_) => {}
        }
    }

    /// Waits for the save of a pause without memory: its machine cannot just go on, it has to boot from what is saved.
    pub(super) async fn finish_saving(&mut self) -> Result<(), LifecycleError> {
        while let Carrier::Stopped { .. } = self.carrier {
            let why = match self.inbound.recv().await {
                Some(Event::Saved { epoch, result }) => {
                    let failed = result.as_ref().err().map(|error| chain(error));
                    self.saved(epoch, result).await;
                    failed.filter(|_| matches!(self.carrier, Carrier::Stopped { .. }))
                }
                Some(Event::MachineExited(id)) => {
                    // For the actor's loop, which ends if the sandbox does.
                    let _ = self.events.send(Event::MachineExited(id));
                    Some("its machine ended before it was saved".to_owned())
                }
                Some(Event::Awake { .. } | Event::StoodStill(_)) | None => None,
            };
            if let Some(why) = why {
                return Err(LifecycleError::Failed { what: "The sandbox could not be resumed", why });
            }
        }
        Ok(())
    }

    /// The save ended: make its snapshot the sandbox's, let go of the machine and of the snapshot before.
    pub(super) async fn finish_pause(&mut self, result: Result<SnapshotId, SaveError>) {
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::error!(%error, "a pause is not durable yet; its machine is kept and saving is tried again");
                self.retry_saving(error);
                return;
            }
        };
        interruption::step("saved.1");
        let previous = self.row.snapshot_id.replace(snapshot.clone());
        let machine_id = self.row.machine_id.take();
        if let Err(error) = self.record(StoredState::Paused).await {
            // The machine goes on being the pause, and saving starts over.
            tracing::error!(%error, "a durable pause could not be recorded");
            self.remove_snapshot(snapshot).await;
            self.row.snapshot_id = previous;
            self.row.machine_id = machine_id;
            self.retry_saving(SaveError::Registry(error));
            return;
        }
        interruption::step("saved.2");
        if let Carrier::Stopped { machine, waiters, .. } =
            std::mem::replace(&mut self.carrier, Carrier::Nothing)
        {
            // Nobody waits for its memory to be freed: a resume may come at any moment.
            tokio::spawn(async move { machine.destroy().await });
            for waiter in waiters {
                answer(waiter, Ok(()));
            }
        }
        self.publish();
        self.tell_durable(&snapshot);
        interruption::step("saved.3");
        if let Some(previous) = previous {
            self.remove_snapshot(previous).await;
        }
    }

    /// Writes into the sandbox's log that its pause would survive a power cut from now on.
    fn tell_durable(&self, snapshot: &SnapshotId) {
        let took = Timestamp::now().duration_since(self.row.record.end_at).as_secs_f64().max(0.0);
        let fields = BTreeMap::from([
            ("snapshot".to_owned(), snapshot.to_string()),
            ("seconds".to_owned(), format!("{took:.3}")),
        ]);
        self.node.telemetry.note(&self.row.id, LogLevel::Info, "the pause is durable", fields);
    }

    /// Saving failed: whoever waits for durability is told, and it is tried again later.
    pub(super) fn retry_saving(&mut self, error: SaveError) {
        self.epoch += 1;
        let (epoch, events) = (self.epoch, self.events.clone());
        if let Carrier::Stopped { machine, saving, waiters } = &mut self.carrier {
            for waiter in waiters.drain(..) {
                let what = "The sandbox is paused but could not be saved yet";
                answer(waiter, Err(LifecycleError::Failed { what, why: chain(&error) }));
            }
            self.saves_under_way += 1;
            *saving = Saving::retry(self.node.clone(), self.row.clone(), machine.clone(), epoch, events);
        }
    }
}

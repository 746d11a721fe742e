//! Resuming, and waking the agent of a machine that was let run.

use std::time::Instant;

use jiff::Timestamp;
use torpor_machine::Machine;
use torpor_types::SnapshotId;
use torpor_vault::interruption;
use tracing::Instrument;

use super::{Actor, Carrier, Event, Next, Resume, Window, answer, chain};
use crate::lifecycle::api::{Connected, LifecycleError, OnTimeout};
use crate::lifecycle::deadline;
use crate::lifecycle::guest::{self, InitError};
use crate::lifecycle::launch::{self, Launched, Start};
use crate::registry::{SandboxRow, StoredState};

// === impl Actor ===

impl Actor {
    /// Tells the agent of the machine that was let run who it is and what time it is; traffic waits until it knows.
    /// The answer to create and resume does not: an agent that just woke up under emulation takes its time.
    pub(super) fn start_waking(&mut self) {
        self.epoch += 1;
        let Carrier::Running { machine, closed, .. } = &self.carrier else { return };
        let (epoch, events, connector) = (self.epoch, self.events.clone(), machine.connector());
        let closed = closed.clone();
        let (row, token) = (self.row.clone(), self.node.access_token(&self.row));
        self.lifecycle_id = guest::new_lifecycle_id();
        self.begin_idle_timer();
        let lifecycle_id = self.lifecycle_id.clone();
        let ca_bundle = self.node.outbound.ca_bundle(&row.record.egress()).map(str::to_owned);
        let waking = async move {
            let init = guest::init(&connector, &row.id, &row.record, token, lifecycle_id, ca_bundle);
            // One that is paused before it answers is not waited for: that would keep its network open for minutes.
            let Some(result) = closed.run_until_cancelled(init).await else { return };
            // An actor that ended wants no result.
            let _ = events.send(Event::Awake { epoch, result });
        };
        tokio::spawn(waking.in_current_span());
    }

    pub(super) async fn woken(&mut self, epoch: u64, result: Result<(), InitError>) -> Next {
        let Carrier::Running { machine, closed, awake } = &mut self.carrier else { return Next::Continue };
        if epoch != self.epoch {
            return Next::Continue;
        }
        match result {
            Ok(()) => {
                *awake = true;
                let (connector, closed) = (machine.connector(), closed.clone());
                let token = self.node.access_token(&self.row);
                self.recording = Some(self.node.telemetry.follow(
                    &self.row.id,
                    connector,
                    token,
                    closed,
                    self.activity.clone(),
                ));
                self.publish();
                Next::Continue
            }
            Err(error) => {
                let id = machine.id().clone();
                self.machine_ended(&id, Some(chain(&error))).await
            }
        }
    }

    pub(super) async fn resume_or_join(
        &mut self,
        arrived: Instant,
        how: Resume,
    ) -> Result<Connected, LifecycleError> {
        if self.row.state == StoredState::Running {
            let joined = Window::contains(&self.last_resume, arrived);
            if how.must_be_paused && !joined {
                return Err(LifecycleError::AlreadyRunning(self.row.id.clone()));
            }
            let max_s = self.max_timeout_s().await?;
            let end_at = deadline::extend(&self.row.record, Timestamp::now(), how.timeout_s, max_s);
            self.move_deadline(end_at).await?;
            return Ok(if joined { Connected::Resumed } else { Connected::AlreadyRunning });
        }
        let started = Instant::now();
        self.resume(how).await?;
        self.last_resume = Some(Window::since(started));
        Ok(Connected::Resumed)
    }

    /// Resumes on behalf of traffic. Whoever else asked may have been quicker; then there is nothing left to do.
    pub(super) async fn wake(&mut self, arrived: Instant) -> Result<(), LifecycleError> {
        if self.row.state == StoredState::Running {
            return Ok(());
        }
        let timeout_s = deadline::resumed_by_traffic_s(&self.row.record, self.max_timeout_s().await?);
        let how = Resume { timeout_s, on_timeout: None, must_be_paused: false, keep_memory: true };
        self.resume_or_join(arrived, how).await.map(|_| ())
    }

    /// Makes the paused sandbox run: in its stopped machine while that is kept, else in a new one from its snapshot.
    #[tracing::instrument(name = "sandbox.resume", skip_all)]
    pub(super) async fn resume(&mut self, how: Resume) -> Result<(), LifecycleError> {
        let max_running = self.node.limits(&self.row.team_id).await?.max_running;
        let _place =
            self.node.starts.take_place(&self.entries, &self.row.team_id, &self.row.id, max_running)?;
        if self.row.record.filesystem_only || !how.keep_memory {
            self.finish_saving().await?;
        }
        let mut running = self.row.clone();
        running.state = StoredState::Running;
        running.record.filesystem_only = false;
        if let Some(on_timeout) = how.on_timeout {
            running.record.pause_on_timeout = on_timeout == OnTimeout::Pause;
        }
        match std::mem::replace(&mut self.carrier, Carrier::Nothing) {
            Carrier::Stopped { machine, saving, waiters } => {
                saving.cancel();
                self.epoch += 1;
                for waiter in waiters {
                    answer(waiter, Err(LifecycleError::InTransition(self.row.id.clone())));
                }
                self.go_on(machine, running, how.timeout_s).await?;
            }
            Carrier::Nothing => {
                let Some(snapshot) = self.row.snapshot_id.clone() else {
                    return Err(LifecycleError::Failed {
                        what: "The sandbox could not be resumed",
                        why: "it has no snapshot".to_owned(),
                    });
                };
                let machine = self.resume_from(&snapshot, how.keep_memory).await?;
                interruption::step("resume.1");
                let before = self.row.state;
                self.row = started(running, &machine, how.timeout_s);
                self.carrier = Carrier::running(machine);
                self.start_waking();
                // It runs: a database that cannot say so now is brought in line by reconciliation.
                if let Err(error) = self.record(before).await {
                    tracing::error!(%error, "the resume could not be recorded");
                }
            }
            running @ Carrier::Running { .. } => {
                self.carrier = running;
                return Err(LifecycleError::AlreadyRunning(self.row.id.clone()));
            }
        }
        interruption::step("resume.2");
        self.publish();
        Ok(())
    }

    /// Lets the machine go on that was stopped for a pause. That is recorded at the same time: the disk may be busy with the
    /// pause, and takes longer than the machine.
    async fn go_on(
        &mut self,
        machine: Machine,
        running: SandboxRow,
        timeout_s: i64,
    ) -> Result<(), LifecycleError> {
        let paused = std::mem::replace(&mut self.row, started(running, &machine, timeout_s));
        let (went_on, recorded) = tokio::join!(machine.cont(), self.record(paused.state));
        if let Err(error) = recorded {
            tracing::error!(%error, "the resume could not be recorded");
        }
        if let Err(error) = went_on {
            let was = std::mem::replace(&mut self.row, paused).state;
            if let Err(error) = self.record(was).await {
                tracing::error!(%error, "a failed resume could not be recorded");
            }
            // It may have run for a moment; the save captures it anew.
            let saving = self.start_saving(&machine, None);
            self.carrier = Carrier::Stopped { machine, saving, waiters: Vec::new() };
            let what = "The sandbox could not be resumed";
            return Err(LifecycleError::Failed { what, why: chain(&error) });
        }
        self.carrier = Carrier::running(machine);
        self.start_waking();
        Ok(())
    }

    async fn resume_from(
        &mut self,
        snapshot: &SnapshotId,
        keep_memory: bool,
    ) -> Result<Machine, LifecycleError> {
        let start = if keep_memory { Start::AsSaved } else { Start::Boot };
        self.row.state = StoredState::Resuming;
        self.publish();
        let (recorded, launched) = tokio::join!(
            self.node.registry.update_sandbox(&self.row, StoredState::Paused),
            launch::launch(&self.node, &self.row, snapshot, start),
        );
        match (recorded, launched) {
            (Ok(_), Ok(Launched { machine, base })) => {
                self.base = Some(base);
                self.watch_exit(&machine);
                Ok(machine)
            }
            (recorded, launched) => {
                if let Ok(launched) = launched.as_ref() {
                    launched.machine.destroy().await;
                }
                self.row.state = StoredState::Paused;
                if let Err(error) = self.record(StoredState::Resuming).await {
                    tracing::error!(%error, "a failed resume could not be recorded");
                }
                self.publish();
                recorded?;
                Err(launched.err().map_or(LifecycleError::ShuttingDown, LifecycleError::from))
            }
        }
    }
}

/// The row of a sandbox that runs from now on, in `machine`, for `timeout_s`.
fn started(mut row: SandboxRow, machine: &Machine, timeout_s: i64) -> SandboxRow {
    row.machine_id = Some(machine.id().clone());
    row.record.started_at = Timestamp::now();
    row.record.end_at = deadline::after(row.record.started_at, timeout_s);
    row
}

//! The deadline, and the ends of machines and sandboxes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use torpor_envd_api::telemetry::LogLevel;
use torpor_types::MachineId;
use torpor_vault::interruption;

use super::{Actor, Carrier, Next, answer};
use crate::lifecycle::api::LifecycleError;
use crate::lifecycle::deadline;
use crate::lifecycle::idle::{Activity, Verdict};
use crate::registry::StoredState;

/// How long an automatic pause that was refused waits before it is tried again.
const RETRY_AUTOMATIC_PAUSE: Duration = Duration::from_secs(15);

// === impl Actor ===

impl Actor {
    pub(super) async fn set_timeout(&mut self, timeout_s: i64) -> Result<(), LifecycleError> {
        self.require_running()?;
        let max_s = self.max_timeout_s().await?;
        let end_at = deadline::set(&self.row.record, Timestamp::now(), timeout_s, max_s)?;
        self.move_deadline(end_at).await
    }

    pub(super) async fn refresh(&mut self, duration_s: i64) -> Result<(), LifecycleError> {
        self.require_running()?;
        let max_s = self.max_timeout_s().await?;
        let end_at = deadline::refresh(&self.row.record, Timestamp::now(), duration_s, max_s);
        self.move_deadline(end_at).await
    }

    /// The longest its team's sandboxes may run without a resume.
    pub(super) async fn max_timeout_s(&self) -> Result<i64, LifecycleError> {
        Ok(self.node.limits(&self.row.team_id).await?.max_timeout_s)
    }

    /// Only a running sandbox has a deadline.
    fn require_running(&self) -> Result<(), LifecycleError> {
        match self.row.state {
            StoredState::Running => Ok(()),
            _ => Err(LifecycleError::Paused(self.row.id.clone())),
        }
    }

    pub(super) async fn move_deadline(&mut self, end_at: Timestamp) -> Result<(), LifecycleError> {
        let before = std::mem::replace(&mut self.row.record.end_at, end_at);
        if before != end_at {
            if let Err(error) = self.record(self.row.state).await {
                self.row.record.end_at = before;
                return Err(error.into());
            }
            self.retry_expiry_at = None;
            self.held_up = None;
            self.publish();
        }
        Ok(())
    }

    /// When the sandbox is to be killed or paused, if it runs.
    pub(super) fn expires_at(&self) -> Option<tokio::time::Instant> {
        if self.row.state != StoredState::Running {
            return None;
        }
        if self.retry_expiry_at.is_some() {
            return self.retry_expiry_at;
        }
        let left = self.row.record.end_at.duration_since(Timestamp::now());
        // A deadline in the past is due at once.
        Some(tokio::time::Instant::now() + Duration::try_from(left).unwrap_or(Duration::ZERO))
    }

    /// A run begins: whether it is idle is looked at when that is possible at the earliest.
    pub(super) fn begin_idle_timer(&mut self) {
        self.activity = Arc::new(Activity::new());
        let idle_s = self.row.record.idle_timeout_s.map(u64::from);
        self.look_at = idle_s.map(|idle_s| tokio::time::Instant::now() + Duration::from_secs(idle_s));
    }

    /// When to look whether it is idle, if it runs.
    pub(super) fn look_at(&self) -> Option<tokio::time::Instant> {
        self.look_at.filter(|_| self.row.state == StoredState::Running)
    }

    /// Does what happens at the deadline if nobody has worked in it for so long.
    pub(super) async fn look_whether_idle(&mut self) -> Next {
        let Some(idle_s) = self.row.record.idle_timeout_s else {
            self.look_at = None;
            return Next::Continue;
        };
        if let Verdict::LookAgain(then) = self.activity.judge(Duration::from_secs(u64::from(idle_s))) {
            self.look_at = Some(then.into());
            if self.retry_expiry_at.is_none() && self.held_up.take().is_some() {
                self.publish();
            }
            return Next::Continue;
        }
        // If it fails: somebody may come to work before it is tried again.
        self.look_at = Some(tokio::time::Instant::now() + RETRY_AUTOMATIC_PAUSE);
        match self.end_by_policy("idle").await {
            Ok(next) => {
                if let Next::Continue = next {
                    let message = format!("paused: nobody worked in it for {idle_s} seconds");
                    self.node.telemetry.note(&self.row.id, LogLevel::Info, message, BTreeMap::new());
                }
                next
            }
            Err(error) => {
                self.tell_held_up(error.to_string());
                Next::Continue
            }
        }
    }

    pub(super) async fn expire(&mut self) -> Next {
        self.end_by_policy("deadline reached").await.unwrap_or_else(|error| {
            // A sandbox that cannot be saved runs on rather than being lost.
            self.retry_expiry_at = Some(tokio::time::Instant::now() + RETRY_AUTOMATIC_PAUSE);
            self.tell_held_up(error.to_string());
            Next::Continue
        })
    }

    /// Kills it or pauses it, as its creator chose.
    async fn end_by_policy(&mut self, why: &str) -> Result<Next, LifecycleError> {
        if self.row.record.pause_on_timeout {
            tracing::info!("{why}: pausing");
            self.pause(self.row.record.keep_memory_on_timeout).await.map(|()| Next::Continue)
        } else {
            tracing::info!("{why}: killing");
            self.kill().await.map(|()| Next::Ended)
        }
    }

    /// Says, once for each time, why it could not be paused when its time was up.
    fn tell_held_up(&mut self, why: String) {
        if self.held_up.is_some() {
            tracing::debug!(%why, "still not paused");
        } else {
            tracing::error!(%why, "its time is up and it could not be paused: it runs on, and it is tried again");
            let message = format!("its time is up and it could not be paused: it runs on. {why}");
            self.node.telemetry.note(&self.row.id, LogLevel::Error, message, BTreeMap::new());
        }
        self.held_up = Some(why);
        self.publish();
    }

    #[tracing::instrument(name = "sandbox.kill", skip_all)]
    pub(super) async fn kill(&mut self) -> Result<(), LifecycleError> {
        let before = self.row.state;
        self.row.state = StoredState::Killing;
        if let Err(error) = self.node.registry.update_sandbox(&self.row, before).await {
            self.row.state = before;
            return Err(error.into());
        }
        self.publish();
        interruption::step("kill.1");
        self.discard().await;
        Ok(())
    }

    /// Destroys the sandbox if nobody has resumed it since its pause at `paused_at`; says whether it did.
    pub(super) async fn forget(&mut self, paused_at: Timestamp) -> Result<bool, LifecycleError> {
        let is_as_it_was = self.row.state == StoredState::Paused && self.row.record.end_at == paused_at;
        if is_as_it_was {
            self.kill().await?;
        }
        Ok(is_as_it_was)
    }

    /// Destroys machine, snapshot and row, and withdraws the sandbox.
    pub(super) async fn discard(&mut self) {
        match std::mem::replace(&mut self.carrier, Carrier::Nothing) {
            Carrier::Nothing => {}
            Carrier::Running { machine, closed, .. } => {
                closed.cancel();
                machine.destroy().await;
            }
            Carrier::Stopped { machine, saving, waiters } => {
                saving.cancel();
                machine.destroy().await;
                drop(waiters);
            }
        }
        interruption::step("kill.2");
        self.remove_saves_under_way().await;
        self.base = None;
        if let Some(snapshot) = self.row.snapshot_id.take() {
            self.remove_snapshot(snapshot).await;
        }
        interruption::step("kill.3");
        self.node.telemetry.remove(&self.row.id).await;
        // The row goes last: a snapshot without a row is taken for one whose row was lost, and kept.
        if let Err(error) = self.node.registry.delete_sandbox(&self.row.id).await {
            tracing::error!(%error, "a destroyed sandbox stays in the database until the next start");
        }
        interruption::step("kill.4");
        self.status.send_modify(|status| {
            status.gone = true;
            status.route = None;
        });
        let mut entries = self.entries.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        entries.remove(&self.row.id);
    }

    /// The machine's process is gone, and nobody here ended it; or, with `cause`, it is of no use any more.
    pub(super) async fn machine_ended(&mut self, id: &MachineId, cause: Option<String>) -> Next {
        if self.row.machine_id.as_ref() != Some(id) {
            return Next::Continue;
        }
        let (machine, waiters) = match std::mem::replace(&mut self.carrier, Carrier::Nothing) {
            Carrier::Nothing => return Next::Continue,
            Carrier::Running { machine, closed, .. } => {
                closed.cancel();
                (machine, Vec::new())
            }
            Carrier::Stopped { machine, saving, waiters } => {
                saving.cancel();
                self.epoch += 1;
                (machine, waiters)
            }
        };
        let why = cause.unwrap_or_else(|| machine.last_words());
        machine.destroy().await;
        if self.row.snapshot_id.is_none() {
            tracing::error!(%why, "the machine ended and the sandbox was never paused: it is lost");
            self.discard().await;
            return Next::Ended;
        }
        tracing::error!(%why, "the machine ended: the sandbox is back at its last durable pause");
        let before = self.row.state;
        self.recording = None;
        self.node.telemetry.set_back(&self.row.id);
        self.row.state = StoredState::Paused;
        self.row.machine_id = None;
        self.row.record.end_at = Timestamp::now();
        if let Err(error) = self.record(before).await {
            tracing::error!(%error, "the end of a machine could not be recorded");
        }
        self.publish();
        for waiter in waiters {
            let what = "The sandbox's machine ended before it was saved";
            answer(waiter, Err(LifecycleError::Failed { what, why: why.clone() }));
        }
        Next::Continue
    }
}

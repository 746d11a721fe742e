//! What goes wrong, done in a cycle: killed servers, killed machines, a full vault.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use rustix::fs::FallocateFlags;
use serde_json::json;

use super::action::Plan;
use super::check::{self, Violation, wrong};
use super::run::{LIFE_S, Run, RunError};
use super::world::Life;
use crate::link::{Answer, NoAnswer};

/// What is left free for guests to write to, when the vault is filled up to its reserve.
const LEFT_FREE_BYTES: u64 = 700 << 20;
/// The smallest piece by which a vault is filled to its brim.
const SMALLEST_PIECE_BYTES: u64 = 64 << 10;
/// With that little, guests whose memory is in the vault stand still, and how long that takes at most.
const NEARLY_FULL_BYTES: u64 = 256 << 20;
const TO_STAND_STILL: Duration = Duration::from_millis(800);
/// What a guest writes meanwhile.
const PRESSURE_MIB: u64 = 48;
/// How long it stays full.
const FULL_FOR: Duration = Duration::from_millis(2000);

/// A file that takes up the vault's free space until it is dropped.
struct Ballast {
    path: PathBuf,
    file: File,
}

/// What is under way when the server is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnderWay {
    Pause,
    Resume,
    Snapshot,
    Fork,
    Step,
}

// === impl Run ===

impl Run {
    pub(super) async fn kill_server(&mut self, plan: Plan) -> Result<(), RunError> {
        self.server.kill().await?;
        self.restart().await?;
        self.exercise(plan.slot, plan).await
    }

    pub(super) async fn restart(&mut self) -> Result<(), RunError> {
        let took = self.server.start().await?;
        self.longest_start = self.longest_start.max(took);
        self.api = self.server.api()?;
        Ok(())
    }

    /// Kills the server while it does something. Nobody was told that it was done, so it may be or not.
    pub(super) async fn kill_server_at_work(&mut self, plan: Plan) -> Result<(), RunError> {
        let claims = self.claims.clone();
        let is_running = self.slot(plan.slot)?.is_running();
        let under_way = match plan.variation % 5 {
            _ if !is_running => UnderWay::Resume,
            0 | 1 => UnderWay::Pause,
            2 => UnderWay::Snapshot,
            3 => UnderWay::Fork,
            _ => UnderWay::Step,
        };
        if is_running {
            self.exercise(plan.slot, plan).await?;
        }
        let slot = self.slot(plan.slot)?;
        let id = slot.id().to_owned();
        let (path, body) = match under_way {
            UnderWay::Pause => {
                slot.pausing(&claims);
                (format!("/sandboxes/{id}/pause"), json!({}))
            }
            UnderWay::Resume => (format!("/v2/sandboxes/{id}/connect"), json!({ "timeout": LIFE_S })),
            UnderWay::Snapshot => (format!("/sandboxes/{id}/snapshots"), json!({})),
            UnderWay::Fork => (format!("/sandboxes/{id}/fork"), json!({ "timeout": LIFE_S, "count": 2 })),
            UnderWay::Step => (String::new(), json!({})),
        };
        let after = Duration::from_millis(u64::from(plan.variation) / 4);
        let answer = if under_way == UnderWay::Step {
            let asked = self.step_in_background(plan.slot)?;
            tokio::time::sleep(after).await;
            self.server.kill().await?;
            asked.abort();
            None
        } else {
            let api = self.api.clone();
            let asked = tokio::spawn(async move { api.call(Method::POST, &path, Some(body)).await });
            tokio::time::sleep(after).await;
            self.server.kill().await?;
            let answer: Result<Answer, NoAnswer> = asked.await?;
            answer.ok()
        };
        self.restart().await?;
        self.settle_interrupted(plan, under_way, answer).await?;
        self.exercise(plan.slot, plan).await
    }

    /// Finds out what became of an operation in whose middle the server was killed.
    async fn settle_interrupted(
        &mut self,
        plan: Plan,
        under_way: UnderWay,
        answer: Option<Answer>,
    ) -> Result<(), RunError> {
        let done = answer.as_ref().is_some_and(Answer::is_success);
        if let Some(answer) = answer.as_ref().filter(|answer| !answer.is_success()) {
            return wrong(format!(
                "{under_way:?}, in whose middle the server was killed, was answered {answer}"
            ))?;
        }
        let path = format!("/sandboxes/{}", self.slot(plan.slot)?.id());
        let found = self.api.call(Method::GET, &path, None).await?;
        let body = check::expect(&format!("GET {path} after a crash in a {under_way:?}"), found, &[200])?;
        let is_paused = body["state"] == "paused";
        let forgotten =
            |what: &str| Violation(format!("{path}: {what} was answered, and is forgotten: {body}"));
        match under_way {
            UnderWay::Pause if is_paused => self.slot(plan.slot)?.paused(),
            UnderWay::Pause if done => return Err(forgotten("a pause").into()),
            UnderWay::Resume if is_paused && done => return Err(forgotten("a resume").into()),
            UnderWay::Resume if !is_paused => {
                let claims = self.claims.clone();
                let Run { api, slots, .. } = self;
                if let Some(resumed) = slots.get_mut(plan.slot)
                    && let Life::Paused { points } = std::mem::replace(&mut resumed.life, Life::Running)
                {
                    check::identify(api, resumed, points, &claims).await?;
                }
            }
            UnderWay::Fork => self.remove_unknown_sandboxes(answer).await?,
            UnderWay::Snapshot => self.remove_unknown_snapshots(answer).await?,
            UnderWay::Pause | UnderWay::Resume | UnderWay::Step => {}
        }
        Ok(())
    }

    /// Children that may have been made although nobody was told are nobody's.
    pub(super) async fn remove_unknown_sandboxes(&mut self, answer: Option<Answer>) -> Result<(), RunError> {
        let listed = self.listed().await?;
        for child in answer.iter().flat_map(|answer| answer.body.as_array()).flatten() {
            let id = child["sandbox"]["sandboxID"].as_str().unwrap_or_default();
            if !listed.contains(id) {
                return wrong(format!("a fork was answered with {child}, which is not there after a crash"))?;
            }
        }
        for id in listed.difference(&self.known()) {
            let answer = self.api.call(Method::DELETE, &format!("/sandboxes/{id}"), None).await?;
            check::expect("killing the child of an interrupted fork", answer, &[204])?;
        }
        Ok(())
    }

    pub(super) async fn remove_unknown_snapshots(&mut self, answer: Option<Answer>) -> Result<(), RunError> {
        let listed = self.api.call(Method::GET, "/snapshots", None).await?;
        let listed = check::expect("the list of snapshots", listed, &[200])?;
        let ids: Vec<&str> =
            listed.as_array().into_iter().flatten().filter_map(|one| one["snapshotID"].as_str()).collect();
        let answered = answer.as_ref().and_then(|answer| answer.body["snapshotID"].as_str());
        let lost = self.taken.iter().map(|taken| taken.id.as_str()).chain(answered);
        if let Some(lost) = lost.into_iter().find(|id| !ids.contains(id)) {
            return wrong(format!("the snapshot {lost} is not there after a crash"))?;
        }
        for id in ids {
            if self.taken.iter().all(|taken| taken.id != id) {
                let path = format!("/templates/{}", id.replace('/', "%2F"));
                let answer = self.api.call(Method::DELETE, &path, None).await?;
                check::expect("deleting the snapshot of an interrupted request", answer, &[204])?;
            }
        }
        Ok(())
    }

    /// `kill -9` of the process that carries a sandbox, if there is one.
    pub(super) async fn kill_machine(&mut self, slot: usize) -> Result<(), RunError> {
        let id = self.slot(slot)?.id().to_owned();
        let machines = self.data_dir.run_dir().join("machines");
        let entries = std::fs::read_dir(machines).map_err(RunError::io("listing the machines"))?;
        for entry in entries.flatten() {
            // A machine that is being removed has no record any more.
            let Ok(record) = std::fs::read(entry.path().join("record.json")) else { continue };
            let Ok(record) = serde_json::from_slice::<serde_json::Value>(&record) else { continue };
            let pid = record["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            if record["note"]["sandbox"] == id.as_str()
                && let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
            {
                // The only error is that it has ended already.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        Ok(())
    }

    /// As if the host had ended, but for the page cache.
    pub(super) async fn kill_both(&mut self, plan: Plan) -> Result<(), RunError> {
        self.ensure_running(plan.slot).await?;
        self.exercise(plan.slot, plan).await?;
        if plan.variation.is_multiple_of(3) {
            self.pause(plan.slot, false).await?;
            tokio::time::sleep(Duration::from_millis(u64::from(plan.variation) / 4)).await;
        }
        self.server.kill().await?;
        self.kill_machine(plan.slot).await?;
        self.restart().await?;
        self.set_back(plan.slot, plan).await
    }

    /// Fills the vault up to its reserve.
    pub(super) async fn fill_vault(&mut self, plan: Plan) -> Result<(), RunError> {
        self.ensure_running(plan.slot).await?;
        self.exercise(plan.slot, plan).await?;
        let ballast = self.ballast(LEFT_FREE_BYTES).await?;
        let refused = self.refused_for_room(plan).await;
        drop(ballast);
        refused?;
        self.exercise(plan.slot, plan).await
    }

    /// Fills the vault to its brim just after a pause was answered. It becomes durable when there is room again.
    pub(super) async fn fill_vault_while_saving(&mut self, plan: Plan) -> Result<(), RunError> {
        self.ensure_running(plan.slot).await?;
        self.exercise(plan.slot, plan).await?;
        self.pause(plan.slot, false).await?;
        let ballast = self.ballast(0).await?;
        tokio::time::sleep(FULL_FOR).await;
        drop(ballast);
        if plan.variation.is_multiple_of(2) {
            self.wait_durable(plan.slot).await?;
        }
        self.resume(plan.slot).await?;
        self.exercise(plan.slot, plan).await
    }

    /// Fills the vault to its brim while the guest writes to its disk, which lies there. It waits until there is room,
    /// and hears of no error.
    pub(super) async fn fill_vault_while_writing(&mut self, plan: Plan) -> Result<(), RunError> {
        self.ensure_running(plan.slot).await?;
        self.exercise(plan.slot, plan).await?;
        let ballast = self.ballast(0).await?;
        let (api, handle) = (self.api.clone(), self.slot(plan.slot)?.handle.clone());
        let target = format!("/press?mib={PRESSURE_MIB}");
        let pressing = async move { api.ask_until_answered(&handle, &target, check::ANSWER_LIMIT).await };
        let pressing = tokio::spawn(pressing);
        tokio::time::sleep(FULL_FOR).await;
        drop(ballast);
        let said = pressing.await??;
        if said["written"] != PRESSURE_MIB {
            return wrong(format!("{}: writing to a full vault came to {said}", self.slot(plan.slot)?.id()))?;
        }
        self.exercise(plan.slot, plan).await
    }

    /// Whether any machine has its memory in a file.
    fn memory_is_shared(&self) -> bool {
        let machines = std::fs::read_dir(self.data_dir.run_dir().join("machines"));
        machines.into_iter().flatten().flatten().any(|machine| {
            let record = std::fs::read(machine.path().join("record.json")).unwrap_or_default();
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
            record["ram"]["file"].is_string()
        })
    }

    /// Takes up all of the vault's space but `left_bytes`.
    async fn ballast(&self, left_bytes: u64) -> Result<Ballast, RunError> {
        let path = self.data_dir.vault().join("ballast");
        let file = File::create(&path).map_err(RunError::io("making the ballast"))?;
        let ballast = Ballast { path, file };
        let fill = |left_bytes| ballast.fill(left_bytes).map_err(RunError::io("filling the vault"));
        if left_bytes < NEARLY_FULL_BYTES && self.memory_is_shared() {
            // Not in one blow: guests whose memory is in the vault have to be stopped in time.
            fill(NEARLY_FULL_BYTES)?;
            tokio::time::sleep(TO_STAND_STILL).await;
        }
        fill(left_bytes)?;
        Ok(ballast)
    }
}

// === impl Ballast ===

impl Ballast {
    fn fill(&self, left_bytes: u64) -> std::io::Result<()> {
        let space = rustix::fs::statvfs(&self.path)?;
        let wanted = (space.f_bavail * space.f_frsize).saturating_sub(left_bytes);
        let before = self.file.metadata()?.len();
        let (mut size, mut piece) = (before, wanted);
        while piece >= SMALLEST_PIECE_BYTES {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), size, piece) {
                // To the brim means what others let go of meanwhile, too.
                Ok(()) if left_bytes == 0 => size += piece,
                Ok(()) => {
                    size += piece;
                    piece = piece.min(wanted - (size - before));
                }
                // Not as much in one go as there is in all.
                Err(rustix::io::Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::error!(%error, "the ballast could not be removed from the vault");
        }
    }
}

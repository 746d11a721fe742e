//! What users do to sandboxes, done in a cycle.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::action::{Action, Plan};
use super::api::CHECKER_PORT;
use super::check::{self, Violation, expect, wrong};
use super::run::{LIFE_S, Run, RunError, start_checker};
use super::world::{Life, Slot, TEMPLATE, Taken};
use crate::link::{Answer, Handle, ToPort};

/// Snapshots that are kept at a time.
const SNAPSHOTS: usize = 3;
/// How long a save may take, one that failed and waits for its next attempt included.
pub(super) const DURABLE_LIMIT: Duration = Duration::from_secs(90);
/// How long a server may take to notice that a machine ended.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

// === impl Run ===

impl Run {
    /// Does what the plan says.
    pub(super) async fn perform(&mut self, plan: Plan) -> Result<(), RunError> {
        let Plan { slot, other, variation, .. } = plan;
        match plan.action {
            Action::Work => {
                self.ensure_running(slot).await?;
                self.exercise(slot, plan).await
            }
            Action::Toggle => self.toggle(plan).await,
            Action::PauseAndResume => {
                self.ensure_running(slot).await?;
                self.exercise(slot, plan).await?;
                self.pause(slot, true).await?;
                self.resume(slot).await?;
                self.exercise(slot, plan).await
            }
            Action::Overtake => {
                self.ensure_running(slot).await?;
                self.exercise(slot, plan).await?;
                self.pause(slot, false).await?;
                tokio::time::sleep(Duration::from_millis(u64::from(variation) / 4)).await;
                self.resume(slot).await?;
                self.exercise(slot, plan).await
            }
            Action::PauseAtWork => {
                self.ensure_running(slot).await?;
                let asked = self.step_in_background(slot)?;
                tokio::time::sleep(Duration::from_millis(u64::from(variation) / 2)).await;
                self.pause(slot, variation.is_multiple_of(2)).await?;
                asked.abort();
                self.resume(slot).await?;
                self.exercise(slot, plan).await
            }
            Action::PauseWithoutMemory => self.pause_without_memory(plan).await,
            Action::Fork => {
                self.ensure_running(slot).await?;
                self.exercise(slot, plan).await?;
                self.fork(slot, other).await?;
                self.exercise(other, plan).await?;
                self.exercise(slot, plan).await
            }
            Action::Snapshot => {
                self.ensure_running(slot).await?;
                self.snapshot(slot).await?;
                self.exercise(slot, plan).await
            }
            Action::Restore => self.restore(plan).await,
            Action::DeleteSnapshot => self.delete_snapshot(variation).await,
            Action::KillServer => self.kill_server(plan).await,
            Action::KillServerAtWork => self.kill_server_at_work(plan).await,
            Action::KillMachine => {
                self.ensure_running(slot).await?;
                self.exercise(slot, plan).await?;
                self.kill_machine(slot).await?;
                self.set_back(slot, plan).await
            }
            Action::KillMachineAfterPause => {
                self.ensure_running(slot).await?;
                self.exercise(slot, plan).await?;
                self.pause(slot, false).await?;
                tokio::time::sleep(Duration::from_millis(u64::from(variation) / 4)).await;
                self.kill_machine(slot).await?;
                self.set_back(slot, plan).await
            }
            Action::KillBoth => self.kill_both(plan).await,
            Action::FillVault => self.fill_vault(plan).await,
            Action::FillVaultWhileSaving => self.fill_vault_while_saving(plan).await,
            Action::FillVaultWhileWriting => self.fill_vault_while_writing(plan).await,
            Action::Network => self.network(plan).await,
            Action::DropConnection => {
                self.ensure_running(slot).await?;
                let asked = self.step_in_background(slot)?;
                tokio::time::sleep(Duration::from_millis(u64::from(variation) / 10)).await;
                asked.abort();
                self.exercise(slot, plan).await
            }
        }
    }

    pub(super) fn slot(&mut self, slot: usize) -> Result<&mut Slot, Violation> {
        self.slots.get_mut(slot).ok_or_else(|| Violation(format!("there is no slot {slot}")))
    }

    async fn post(&self, path: &str, body: Value) -> Result<Answer, RunError> {
        Ok(self.api.call(Method::POST, path, Some(body)).await?)
    }

    async fn toggle(&mut self, plan: Plan) -> Result<(), RunError> {
        if self.slot(plan.slot)?.is_running() {
            self.exercise(plan.slot, plan).await?;
            return self.pause(plan.slot, plan.variation.is_multiple_of(3)).await;
        }
        self.resume(plan.slot).await?;
        self.exercise(plan.slot, plan).await
    }

    /// Pauses a running sandbox, and waits until the pause is durable if asked to.
    pub(super) async fn pause(&mut self, slot: usize, wait_durable: bool) -> Result<(), RunError> {
        let claims = self.claims.clone();
        let running = self.slot(slot)?;
        running.pausing(&claims);
        let path = format!("/sandboxes/{}/pause", running.id());
        let answer = self.post(&path, json!({ "waitDurable": wait_durable })).await?;
        expect(&format!("POST {path}"), answer, &[204])?;
        let paused = self.slot(slot)?;
        paused.paused();
        if wait_durable {
            paused.is_durable(&claims);
        }
        Ok(())
    }

    pub(super) async fn ensure_running(&mut self, slot: usize) -> Result<(), RunError> {
        if self.slot(slot)?.is_running() { Ok(()) } else { self.resume(slot).await }
    }

    /// Resumes a paused sandbox.
    pub(super) async fn resume(&mut self, slot: usize) -> Result<(), RunError> {
        let claims = self.claims.clone();
        let path = format!("/v2/sandboxes/{}/connect", self.slot(slot)?.id());
        let answer = self.post(&path, json!({ "timeout": LIFE_S })).await?;
        let body = expect(&format!("POST {path}"), answer, &[201])?;
        let Run { api, slots, .. } = self;
        let Some(resumed) = slots.get_mut(slot) else { return Ok(()) };
        if Handle::of(&body).as_ref() != Some(&resumed.handle) {
            return wrong(format!("{}: resumed as another: {body}", resumed.id()))?;
        }
        if let Life::Paused { points } = std::mem::replace(&mut resumed.life, Life::Running) {
            check::identify(api, resumed, points, &claims).await?;
        }
        Ok(())
    }

    /// Asks for a step, and does not wait for it.
    pub(super) fn step_in_background(
        &mut self,
        slot: usize,
    ) -> Result<tokio::task::JoinHandle<()>, Violation> {
        let api = self.api.clone();
        let slot = self.slot(slot)?;
        let step = slot.guest.pending.unwrap_or_else(|| slot.guest.next(slot.salt));
        slot.guest.pending = Some(step);
        let handle = slot.handle.clone();
        Ok(tokio::spawn(async move {
            // Whether it is answered does not matter: it is asked for again.
            let _ = api.ask(&handle, ToPort::get(CHECKER_PORT, &check::target(step))).await;
        }))
    }

    /// Keeps the files alone, boots, and starts the checker on them.
    async fn pause_without_memory(&mut self, plan: Plan) -> Result<(), RunError> {
        let claims = self.claims.clone();
        self.ensure_running(plan.slot).await?;
        self.exercise(plan.slot, plan).await?;
        let slot = self.slot(plan.slot)?;
        slot.guest.is_cold = true;
        slot.pausing(&claims);
        let path = format!("/sandboxes/{}/pause", slot.id());
        let answer = self.post(&path, json!({ "memory": false, "waitDurable": true })).await?;
        expect(&format!("POST {path}, without memory"), answer, &[204])?;
        let slot = self.slot(plan.slot)?;
        slot.paused();
        slot.is_durable(&claims);
        self.resume(plan.slot).await?;
        let Run { api, slots, .. } = self;
        if let Some(slot) = slots.get_mut(plan.slot) {
            start_checker(api, slot).await?;
        }
        self.exercise(plan.slot, plan).await?;
        // So that what it is set back to, should its machine be killed, has a checker in it that runs.
        self.pause(plan.slot, true).await?;
        self.resume(plan.slot).await?;
        self.exercise(plan.slot, plan).await
    }

    /// Makes a child of the sandbox in `parent`, in place of the one in `target`.
    async fn fork(&mut self, parent: usize, target: usize) -> Result<(), RunError> {
        let path = format!("/sandboxes/{}/fork", self.slot(parent)?.id());
        let answer = self.post(&path, json!({ "timeout": LIFE_S, "count": 1 })).await?;
        let body = expect(&format!("POST {path}"), answer, &[201])?;
        let Some(handle) = Handle::of(&body[0]["sandbox"]) else {
            return wrong(format!("POST {path}: no child: {body}"))?;
        };
        let salt = self.next_salt();
        let parent = self.slot(parent)?;
        if handle.id == parent.handle.id || handle.token == parent.handle.token {
            return wrong(format!("POST {path}: the child has id or token of its parent"))?;
        }
        let mut child = Slot::new(handle, salt, parent.guest.clone(), parent.template.clone());
        child.internet = parent.internet;
        self.replace(target, child).await
    }

    /// Kills the sandbox in a slot, and puts another there.
    async fn replace(&mut self, slot: usize, new: Slot) -> Result<(), RunError> {
        let claims = self.claims.clone();
        let old = std::mem::replace(self.slot(slot)?, new);
        old.give_up(&claims);
        let path = format!("/sandboxes/{}", old.id());
        let answer = self.api.call(Method::DELETE, &path, None).await?;
        expect(&format!("DELETE {path}"), answer, &[204])?;
        let answer = self.api.call(Method::GET, &path, None).await?;
        expect(&format!("GET {path} of one that was killed"), answer, &[404])?;
        Ok(())
    }

    pub(super) async fn snapshot(&mut self, slot: usize) -> Result<(), RunError> {
        if self.taken.len() >= SNAPSHOTS {
            self.delete_snapshot(0).await?;
        }
        let path = format!("/sandboxes/{}/snapshots", self.slot(slot)?.id());
        let answer = self.post(&path, json!({})).await?;
        let body = expect(&format!("POST {path}"), answer, &[201])?;
        let Some(id) = body["snapshotID"].as_str().map(str::to_owned) else {
            return wrong(format!("POST {path}: a snapshot without an id: {body}"))?;
        };
        let guest = self.slot(slot)?.guest.clone();
        self.claims.change(|held| {
            held.snapshots.insert(id.clone(), guest.clone());
        });
        self.taken.push(Taken { id, guest });
        Ok(())
    }

    async fn restore(&mut self, plan: Plan) -> Result<(), RunError> {
        if self.taken.is_empty() {
            self.ensure_running(plan.slot).await?;
            self.snapshot(plan.slot).await?;
        }
        let chosen = plan.variation as usize % self.taken.len().max(1);
        let Some(taken) = self.taken.get(chosen) else { return Ok(()) };
        let (id, guest) = (taken.id.clone(), taken.guest.clone());
        let answer = self.post("/v2/sandboxes", json!({ "templateID": id, "timeout": LIFE_S })).await?;
        let body = expect(&format!("creating a sandbox from snapshot {id}"), answer, &[201])?;
        let Some(handle) = Handle::of(&body) else {
            return wrong(format!("a sandbox without an id: {body}"))?;
        };
        let salt = self.next_salt();
        self.replace(plan.other, Slot::new(handle, salt, guest, id)).await?;
        self.exercise(plan.other, plan).await
    }

    /// Deletes a snapshot. While sandboxes stand on it that is refused.
    async fn delete_snapshot(&mut self, variation: u32) -> Result<(), RunError> {
        let chosen = variation as usize % self.taken.len().max(1);
        let Some(taken) = self.taken.get(chosen) else { return Ok(()) };
        let id = taken.id.clone();
        let in_use = self.slots.iter().any(|slot| slot.template == id);
        let path = format!("/templates/{}", id.replace('/', "%2F"));
        if !in_use {
            self.claims.change(|held| {
                held.snapshots.remove(&id);
            });
            self.taken.remove(chosen);
        }
        let answer = self.api.call(Method::DELETE, &path, None).await?;
        let status = if in_use { 400 } else { 204 };
        expect(&format!("DELETE {path}, in use: {in_use}"), answer, &[status])?;
        Ok(())
    }

    /// Takes the internet away from a sandbox or gives it back; everything else goes on, and it stays so over a pause.
    async fn network(&mut self, plan: Plan) -> Result<(), RunError> {
        self.ensure_running(plan.slot).await?;
        let slot = self.slot(plan.slot)?;
        slot.internet = !slot.internet;
        let path = format!("/sandboxes/{}/network", slot.id());
        let body = json!({ "allow_internet_access": slot.internet });
        let answer = self.api.call(Method::PUT, &path, Some(body)).await?;
        expect(&format!("PUT {path}"), answer, &[204])?;
        self.exercise(plan.slot, plan).await?;
        if plan.variation.is_multiple_of(2) {
            self.pause(plan.slot, false).await?;
        }
        Ok(())
    }

    /// Waits until the server says that the pause of a sandbox is durable.
    pub(super) async fn wait_durable(&mut self, slot: usize) -> Result<(), RunError> {
        let deadline = tokio::time::Instant::now() + DURABLE_LIMIT;
        loop {
            let Run { api, slots, claims, checks, .. } = self;
            let Some(paused) = slots.get_mut(slot) else { return Ok(()) };
            check::described(api, paused, claims, checks).await?;
            if paused.since.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return wrong(format!("{}: its pause is not durable after {DURABLE_LIMIT:?}", paused.id()))?;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The machine of a sandbox is gone: it is back at its last durable pause, or at one that came after it; if there
    /// never was one, it is lost, and another takes its slot.
    pub(super) async fn set_back(&mut self, slot: usize, plan: Plan) -> Result<(), RunError> {
        let deadline = tokio::time::Instant::now() + NOTICE_LIMIT;
        let path = format!("/sandboxes/{}", self.slot(slot)?.id());
        loop {
            let answer = self.api.call(Method::GET, &path, None).await?;
            // Until the server has noticed, the sandbox runs, or is paused and not durable.
            let settled = answer.body["state"] == "paused" && answer.body["durable"] == true;
            let lost = self.slot(slot)?;
            if answer.status == 404 && lost.durable.is_none() {
                self.checks.never_paused += 1;
                return self.refill(slot).await;
            }
            if answer.status == 200 && settled {
                break;
            }
            if answer.status != 200 || tokio::time::Instant::now() >= deadline {
                return wrong(format!("{path}: its machine was killed, and it is {answer}"))?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.checks.set_back += 1;
        let lost = self.slot(slot)?;
        lost.life = Life::Paused { points: lost.points() };
        if plan.variation.is_multiple_of(2) {
            self.resume(slot).await?;
            self.exercise(slot, plan).await?;
        }
        Ok(())
    }

    /// A create, a fork, a snapshot and a pause are refused for want of room, and a resume is not.
    pub(super) async fn refused_for_room(&mut self, plan: Plan) -> Result<(), RunError> {
        let id = self.slot(plan.slot)?.id().to_owned();
        let requests = [
            ("/v2/sandboxes".to_owned(), json!({ "templateID": TEMPLATE, "timeout": LIFE_S })),
            (format!("/sandboxes/{id}/fork"), json!({ "timeout": LIFE_S, "count": 1 })),
            (format!("/sandboxes/{id}/snapshots"), json!({})),
            (format!("/sandboxes/{id}/pause"), json!({})),
        ];
        for (path, body) in requests {
            let answer = self.post(&path, body).await?;
            expect(&format!("POST {path} with a full vault"), answer, &[507])?;
            self.checks.refused_for_room += 1;
        }
        self.exercise(plan.slot, plan).await?;
        self.ensure_running(plan.other).await?;
        self.exercise(plan.other, plan).await
    }
}

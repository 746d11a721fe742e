//! Every numbered step of every operation: the server aborts exactly there, the next one starts, and what it made of what
//! was left is looked at, with the sandbox's machine alive and with the machine gone too.
//!
//! The steps are in the product's source (`torpor_vault::interruption::step`); they are there only with the feature
//! `interruptions`.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};

use super::action::{Action, Plan};
use super::check::{self, Violation, wrong};
use super::run::{LIFE_S, Run, RunError};
use super::world::{Life, TEMPLATE};
use crate::progress::Console;

/// How long the server may take to clear away what was left.
const CLEAR_LIMIT: Duration = Duration::from_secs(30);

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Create,
    Pause,
    Resume,
    Snapshot,
    Fork,
    DeleteSnapshot,
    Kill,
}

/// A step of an operation: its name in the source, and what has been done when it is reached.
type Point = (Operation, &'static str, &'static str);

/// All of them, in the order in which they are reached.
const POINTS: [Point; 43] = [
    (Operation::Create, "launch.1", "nothing but, perhaps, the row that says creating"),
    (Operation::Create, "launch.2", "a machine has the template's memory and disk"),
    (Operation::Create, "create.1", "it runs; the row says creating"),
    (Operation::Create, "create.2", "the row says running; nobody was told"),
    (Operation::Pause, "pause.1", "nothing"),
    (Operation::Pause, "pause.2", "machine stopped, state captured; the row says pausing"),
    (Operation::Pause, "pause.3", "the row says paused; nobody was told"),
    (Operation::Pause, "save.1", "memory copied"),
    (Operation::Pause, "save.2", "memory, device state and disk copied"),
    (Operation::Pause, "publish.1", "images flushed, sums written"),
    (Operation::Pause, "publish.2", "manifest written and flushed"),
    (Operation::Pause, "publish.3", "directory flushed"),
    (Operation::Pause, "publish.4", "renamed into place"),
    (Operation::Pause, "publish.5", "the rename flushed"),
    (Operation::Pause, "saved.1", "published; the row does not name it"),
    (Operation::Pause, "saved.2", "the row names it; machine and snapshot before are there"),
    (Operation::Pause, "saved.3", "machine let go; the snapshot before is there"),
    (Operation::Pause, "remove.1", "the snapshot before moved aside"),
    (Operation::Pause, "remove.2", "the move flushed"),
    (Operation::Resume, "launch.1", "nothing but, perhaps, the row that says resuming"),
    (Operation::Resume, "launch.2", "a machine has the pause's memory and disk"),
    (Operation::Resume, "resume.1", "it runs; the row says resuming"),
    (Operation::Resume, "resume.2", "the row says running; nobody was told"),
    (Operation::Snapshot, "copy.1", "machine stopped, state captured"),
    (Operation::Snapshot, "copy.2", "copied; the machine goes on"),
    (Operation::Snapshot, "publish.3", "everything flushed but the rename"),
    (Operation::Snapshot, "publish.4", "renamed into place"),
    (Operation::Snapshot, "publish.5", "the rename flushed"),
    (Operation::Snapshot, "snapshot.1", "durable; it has no row"),
    (Operation::Snapshot, "snapshot.2", "the row is written; nobody was told"),
    (Operation::Fork, "copy.1", "machine stopped, state captured"),
    (Operation::Fork, "copy.2", "copied; the machine goes on"),
    (Operation::Fork, "fork.1", "the copy is durable; no child is made"),
    (Operation::Fork, "create.1", "a child runs; its row says creating"),
    (Operation::Fork, "fork.2", "the children run; nobody was told"),
    (Operation::DeleteSnapshot, "remove.1", "moved aside"),
    (Operation::DeleteSnapshot, "delete.1", "removed; the row is there"),
    (Operation::Kill, "kill.1", "the row says killing"),
    (Operation::Kill, "kill.2", "machine destroyed"),
    (Operation::Kill, "remove.1", "its snapshot moved aside"),
    (Operation::Kill, "remove.2", "the move flushed"),
    (Operation::Kill, "kill.3", "its snapshot removed"),
    (Operation::Kill, "kill.4", "its row removed"),
];

// === impl Run ===

impl Run {
    /// Interrupts every operation at every step, and writes what came of it into `page`.
    pub(super) async fn interrupt_everywhere(&mut self, page: &Path) -> Result<String, RunError> {
        let step = Console::new().step("interruptions");
        let mut table = String::from(
            "| operation | step | what was done by then | the server is started again | … and the machine is gone too |\n\
             |---|---|---|---|---|\n",
        );
        for (index, point) in POINTS.into_iter().enumerate() {
            let (operation, name, done) = point;
            step.done(index as f64 / POINTS.len() as f64);
            let alive = self.interrupt(point, false).await?;
            let gone = match operation {
                // There is no machine of a sandbox that anybody knows.
                Operation::Create => "–".to_owned(),
                _ => self.interrupt(point, true).await?,
            };
            // Writing to a string cannot fail.
            let _ = writeln!(table, "| {} | `{name}` | {done} | {alive} | {gone} |", operation.name());
        }
        self.take_away().await?;
        self.server.stop().await?;
        step.ok(&format!("{} steps, nothing lost and nothing left", POINTS.len()));
        let text = format!(
            "# What an interruption leaves\n\nWritten by `make interruptions`: a server is ended (`abort`) exactly at a \
             step of an operation, another is started, and the sandbox is compared with the model of `torpor torture` \
             ([integrity.md](integrity.md)). The sandbox has a durable pause, and worked since. In the last column its machine was \
             killed before the next server started, so that only the vault is left. After each, when what nobody was told of \
             is killed, nothing is left in the vault but what the sandbox stands on.\n\n{table}"
        );
        std::fs::write(page, &text).map_err(RunError::io("writing the table of interruptions"))?;
        Ok(table)
    }

    async fn interrupt(&mut self, point: Point, machine_too: bool) -> Result<String, RunError> {
        let (operation, name, _) = point;
        let what = format!("{} interrupted at {name}", operation.name());
        self.interrupt_at(point, machine_too).await.map_err(|error| match error {
            RunError::Violation(Violation(why)) => {
                Violation(format!("{what}, machine gone: {machine_too}: {why}")).into()
            }
            other => other,
        })
    }

    async fn interrupt_at(&mut self, point: Point, machine_too: bool) -> Result<String, RunError> {
        let (operation, name, _) = point;
        let plan = self.next_plan();
        // A round leaves it at a durable pause.
        if self.slot(0)?.is_running() {
            self.exercise(0, plan).await?;
            self.pause(0, true).await?;
        }
        if operation != Operation::Resume {
            self.resume(0).await?;
            self.exercise(0, plan).await?;
        }
        if operation == Operation::DeleteSnapshot {
            self.snapshot(0).await?;
        }
        self.server.kill().await?;
        self.server.start_with(Some(name)).await?;
        self.api = self.server.api()?;
        let (method, path, body) = self.request(operation)?;
        if operation == Operation::Pause {
            let claims = self.claims.clone();
            self.slot(0)?.pausing(&claims);
        }
        let api = self.api.clone();
        let asked = tokio::spawn(async move { api.call(method, &path, Some(body)).await });
        if !self.server.aborted().await? {
            return wrong("the server did not come to this step")?;
        }
        // Some steps come after the answer.
        if let Some(answer) = asked.await?.ok().filter(|answer| !answer.is_success()) {
            return wrong(format!("it was answered {answer}"))?;
        }
        if machine_too {
            self.kill_machine(0).await?;
        }
        self.restart().await?;
        let outcome = self.outcome(operation, plan, machine_too).await?;
        self.nothing_is_left().await?;
        Ok(outcome)
    }

    fn next_plan(&mut self) -> Plan {
        let cycle = self.next_salt();
        Plan { cycle, action: Action::Work, slot: 0, other: 0, variation: 0, full: false, cut_after_ms: None }
    }

    fn request(&mut self, operation: Operation) -> Result<(Method, String, Value), RunError> {
        let id = self.slot(0)?.id().to_owned();
        let taken = self.taken.first().map(|taken| taken.id.replace('/', "%2F")).unwrap_or_default();
        Ok(match operation {
            Operation::Create => {
                let body = json!({ "templateID": TEMPLATE, "timeout": LIFE_S });
                (Method::POST, "/v2/sandboxes".to_owned(), body)
            }
            Operation::Pause => {
                (Method::POST, format!("/sandboxes/{id}/pause"), json!({ "waitDurable": true }))
            }
            Operation::Resume => {
                (Method::POST, format!("/v2/sandboxes/{id}/connect"), json!({ "timeout": LIFE_S }))
            }
            Operation::Snapshot => (Method::POST, format!("/sandboxes/{id}/snapshots"), json!({})),
            Operation::Fork => {
                (Method::POST, format!("/sandboxes/{id}/fork"), json!({ "timeout": LIFE_S, "count": 2 }))
            }
            Operation::DeleteSnapshot => (Method::DELETE, format!("/templates/{taken}"), Value::Null),
            Operation::Kill => (Method::DELETE, format!("/sandboxes/{id}"), Value::Null),
        })
    }

    /// Looks at the sandbox, and says in words what became of it and of what was being made.
    async fn outcome(
        &mut self,
        operation: Operation,
        plan: Plan,
        machine_too: bool,
    ) -> Result<String, RunError> {
        let path = format!("/sandboxes/{}", self.slot(0)?.id());
        let found = self.api.call(Method::GET, &path, None).await?;
        if operation == Operation::Kill {
            check::expect(&format!("GET {path} after a kill"), found, &[404])?;
            self.refill(0).await?;
            return Ok("gone".to_owned());
        }
        let body = check::expect(&format!("GET {path}"), found, &[200])?;
        let (is_paused, was) = (body["state"] == "paused", self.slot(0)?.guest.chain());
        let slot = self.slot(0)?;
        slot.life = match is_paused {
            true if machine_too => Life::Paused { points: slot.points() },
            true => Life::Paused { points: vec![slot.guest.clone()] },
            false => Life::Running,
        };
        self.ensure_running(0).await?;
        let now = self.slot(0)?.guest.chain();
        self.exercise(0, plan).await?;
        let state = match (is_paused, was == now) {
            (true, true) => "paused, as it was",
            (true, false) => "paused, at the pause before",
            (false, true) => "running, as it was",
            (false, false) => return wrong("it runs, and is not what it was")?,
        };
        let (sandboxes, snapshots) = (self.listed().await?.len() - 1, self.snapshots_listed().await?);
        self.remove_unknown_sandboxes(None).await?;
        let more = match operation {
            Operation::Create => match sandboxes {
                0 => return Ok("nothing of it is left".to_owned()),
                _ => return Ok("it is there and runs, although nobody was told".to_owned()),
            },
            Operation::Fork => format!("; {sandboxes} children"),
            Operation::Snapshot if snapshots == 0 => "; no snapshot".to_owned(),
            Operation::Snapshot => "; the snapshot is there, although nobody was told".to_owned(),
            Operation::DeleteSnapshot if snapshots == 0 => "; the snapshot is gone".to_owned(),
            Operation::DeleteSnapshot => return wrong("the snapshot that was being deleted is there")?,
            Operation::Pause | Operation::Resume | Operation::Kill => String::new(),
        };
        self.taken.clear();
        self.claims.change(|held| held.snapshots.clear());
        self.remove_unknown_snapshots(None).await?;
        Ok(format!("{state}{more}"))
    }

    async fn snapshots_listed(&self) -> Result<usize, RunError> {
        let answer = self.api.call(Method::GET, "/snapshots", None).await?;
        let body = check::expect("the list of snapshots", answer, &[200])?;
        Ok(body.as_array().map_or(0, Vec::len))
    }

    /// With the sandbox paused, the vault has its pause and nothing else.
    async fn nothing_is_left(&mut self) -> Result<(), RunError> {
        self.pause(0, true).await?;
        let deadline = Instant::now() + CLEAR_LIMIT;
        loop {
            let left = self.left_in_vault().map_err(RunError::io("listing the vault"))?;
            if left.len() == 1 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return wrong(format!("in the vault has to be one pause, and there is {left:?}"))?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

// === impl Operation ===

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Pause => "pause",
            Operation::Resume => "resume",
            Operation::Snapshot => "snapshot",
            Operation::Fork => "fork",
            Operation::DeleteSnapshot => "delete a snapshot",
            Operation::Kill => "kill",
        }
    }
}

//! A run: the server, the sandboxes in their slots, and what was found so far. The deeds (`deeds.rs`, `faults.rs`) are
//! what a cycle does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use hyper::Method;
use serde_json::json;
use torpor_envd_api::process::{ProcessConfig, StartRequest};

use super::action::{Action, Plan};
use super::api::CHECKER_PORT;
use super::check::{self, Checks, Violation, wrong};
use super::claims::Claims;
use super::draw::Draw;
use super::model::{Guest, Question};
use super::server::{Server, ServerError};
use super::terminal;
use super::world::{Life, Slot, TEMPLATE, Taken};
use crate::layout::DataDir;
use crate::link::{Handle, Link};

/// Seconds a sandbox lives unless it is resumed: longer than any run.
pub(super) const LIFE_S: u32 = 80_000;
/// Where the checker and its files are in a sandbox.
const HOME: &str = "/home/user";
/// Least memory that a checker writes to, in pages; and how much more it may be.
const PAGES: (u32, u32) = (64 << 8, 224 << 8);
/// Pages of a sample of every sandbox's memory, and of the one a cycle was about.
const SAMPLES: (u32, u32) = (50, 300);
/// Sandboxes that are filled at a time.
const FILLED_AT_ONCE: usize = 2;

/// A run did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// What it is there to find.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The server cannot be started, which after a crash is a violation too.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The harness's own files and processes.
    #[error("{doing}: {cause}")]
    Io { doing: &'static str, cause: std::io::Error },
    /// A part of the harness ended early.
    #[error("a part of the harness ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// A run that is under way.
pub(super) struct Run {
    pub(super) seed: u64,
    pub(super) data_dir: DataDir,
    pub(super) server: Server,
    pub(super) api: Link,
    pub(super) slots: Vec<Slot>,
    pub(super) taken: Vec<Taken>,
    pub(super) claims: Claims,
    pub(super) checks: Checks,
    pub(super) actions: BTreeMap<Action, u32>,
    /// The longest time a server took from its start to its first answer.
    pub(super) longest_start: Duration,
    /// The next salt.
    pub(super) salt: u32,
}

// === impl RunError ===

impl From<crate::link::NoAnswer> for RunError {
    fn from(error: crate::link::NoAnswer) -> RunError {
        RunError::Violation(error.into())
    }
}

impl RunError {
    pub(super) fn io(doing: &'static str) -> impl Fn(std::io::Error) -> RunError {
        move |cause| RunError::Io { doing, cause }
    }
}

// === impl Run ===

impl Run {
    /// Starts the server, and fills `count` sandboxes.
    pub(super) async fn start(
        seed: u64,
        data_dir: DataDir,
        count: usize,
        filled: impl Fn(usize),
    ) -> Result<Run, RunError> {
        let mut server = Server::new(&data_dir)?;
        let longest_start = server.start().await?;
        let api = server.api()?;
        let mut run = Run {
            seed,
            data_dir,
            server,
            api,
            slots: Vec::new(),
            taken: Vec::new(),
            claims: Claims::default(),
            checks: Checks::default(),
            actions: BTreeMap::new(),
            longest_start,
            salt: 0,
        };
        let there = run.listed().await?;
        if !there.is_empty() {
            return wrong(format!(
                "the data directory has sandboxes already: {there:?}; give it one of its own"
            ))?;
        }
        let salts: Vec<u32> = (0..count).map(|_| run.next_salt()).collect();
        let api = run.api.clone();
        let fresh = futures::stream::iter(salts).map(|salt| fresh(&api, seed, salt)).buffered(FILLED_AT_ONCE);
        let mut fresh = std::pin::pin!(fresh);
        while let Some(slot) = fresh.next().await {
            run.slots.push(slot?);
            filled(run.slots.len());
        }
        Ok(run)
    }

    /// Does a cycle, and looks at everything afterwards.
    pub(super) async fn cycle(&mut self, plan: Plan) -> Result<(), RunError> {
        *self.actions.entry(plan.action).or_default() += 1;
        self.perform(plan).await?;
        self.look_at_all(plan).await
    }

    /// The sandbox of a cycle works, and is looked at.
    pub(super) async fn exercise(&mut self, slot: usize, plan: Plan) -> Result<(), RunError> {
        let Run { api, slots, checks, .. } = self;
        let Some(slot) = slots.get_mut(slot).filter(|slot| slot.is_running()) else { return Ok(()) };
        check::settle(api, slot).await?;
        let question = Question { nonce: plan.cycle, pages: SAMPLES.1, full: plan.full };
        check::compare(api, slot, question, checks).await?;
        // The shell first: a point is told from another by the steps before it.
        check::shell(api, slot, plan.cycle, checks).await?;
        Ok(check::work(api, slot).await?)
    }

    /// Every sandbox is what it has to be, and there are no others.
    pub(super) async fn look_at_all(&mut self, plan: Plan) -> Result<(), RunError> {
        let Run { api, slots, claims, .. } = self;
        let (api, claims) = (&*api, &*claims);
        let looking = slots.iter_mut().map(|slot| async move {
            let mut checks = Checks::default();
            check::described(api, slot, claims, &mut checks).await?;
            if slot.is_running() {
                let question = Question { nonce: plan.cycle, pages: SAMPLES.0, full: false };
                check::compare(api, slot, question, &mut checks).await?;
            }
            Ok::<_, Violation>(checks)
        });
        for checks in futures::future::join_all(looking).await {
            self.checks.add(checks?)?;
        }
        let (listed, known) = (self.listed().await?, self.known());
        if listed != known {
            let (missing, more) = (known.difference(&listed), listed.difference(&known));
            let (missing, more): (Vec<_>, Vec<_>) = (missing.collect(), more.collect());
            return wrong(format!("the list of sandboxes lacks {missing:?}, and has besides {more:?}"))?;
        }
        Ok(())
    }

    /// Looks at every byte of every sandbox, resuming those that are paused.
    pub(super) async fn look_at_every_byte(&mut self, cycle: u32) -> Result<(), RunError> {
        for slot in 0..self.slots.len() {
            self.ensure_running(slot).await?;
            let plan = Plan {
                cycle: cycle + 1,
                action: Action::Work,
                slot,
                other: slot,
                variation: 0,
                full: true,
                cut_after_ms: None,
            };
            self.exercise(slot, plan).await?;
            self.pause(slot, true).await?;
        }
        Ok(())
    }

    /// Ids of all sandboxes that have to be there.
    pub(super) fn known(&self) -> BTreeSet<String> {
        self.slots.iter().map(|slot| slot.id().to_owned()).collect()
    }

    /// Ids of all sandboxes that the server has.
    pub(super) async fn listed(&self) -> Result<BTreeSet<String>, RunError> {
        let path = "/v2/sandboxes?state=running,paused&limit=100";
        let answer = self.api.call(Method::GET, path, None).await?;
        let body = check::expect("the list of sandboxes", answer, &[200])?;
        let ids = body.as_array().into_iter().flatten().filter_map(|sandbox| sandbox["sandboxID"].as_str());
        Ok(ids.map(str::to_owned).collect())
    }

    pub(super) fn next_salt(&mut self) -> u32 {
        self.salt += 1;
        self.salt
    }

    /// Puts a new sandbox into a slot whose sandbox was lost.
    pub(super) async fn refill(&mut self, slot: usize) -> Result<(), RunError> {
        let salt = self.next_salt();
        let fresh = fresh(&self.api, self.seed, salt).await?;
        if let Some(lost) = self.slots.get_mut(slot) {
            lost.give_up(&self.claims);
            *lost = fresh;
        }
        Ok(())
    }

    /// Kills every sandbox and deletes every snapshot; nothing of them may stay in the vault.
    pub(super) async fn take_away(&mut self) -> Result<(), RunError> {
        for slot in std::mem::take(&mut self.slots) {
            slot.give_up(&self.claims);
            let answer = self.api.call(Method::DELETE, &format!("/sandboxes/{}", slot.id()), None).await?;
            check::expect("killing a sandbox", answer, &[204])?;
        }
        for taken in std::mem::take(&mut self.taken) {
            let path = format!("/templates/{}", taken.id.replace('/', "%2F"));
            let answer = self.api.call(Method::DELETE, &path, None).await?;
            check::expect("deleting a snapshot", answer, &[204])?;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = self.left_in_vault().map_err(RunError::io("listing the vault"))?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return wrong(format!("when everything was killed, this stayed in the vault: {left:?}"))?;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Snapshots of sandboxes, and snapshots that are being written or removed.
    pub(super) fn left_in_vault(&self) -> std::io::Result<Vec<String>> {
        let mut left = Vec::new();
        for dir in ["snapshots", "staging"] {
            for entry in std::fs::read_dir(self.data_dir.vault().join(dir))? {
                let entry = entry?;
                let manifest =
                    std::fs::read_to_string(entry.path().join("manifest.json")).unwrap_or_default();
                if dir == "staging" || !manifest.contains("\"template\"") {
                    left.push(format!("{dir}/{}", entry.file_name().display()));
                }
            }
        }
        Ok(left)
    }
}

/// A sandbox that was just made, with a checker in it whose memory has a size of its own.
async fn fresh(api: &Link, seed: u64, salt: u32) -> Result<Slot, Violation> {
    let body = json!({ "templateID": TEMPLATE, "timeout": LIFE_S });
    let answer = api.call(Method::POST, "/v2/sandboxes", Some(body)).await?;
    let body = check::expect("creating a sandbox", answer, &[201])?;
    let Some(handle) = Handle::of(&body) else { return wrong(format!("a sandbox without an id: {body}")) };
    let uploaded = api.upload(&handle, &format!("{HOME}/checker.py"), include_bytes!("checker.py")).await?;
    check::expect("uploading the checker", uploaded, &[200])?;
    let pages = PAGES.0 + Draw::new(format!("pages/{seed}/{salt}")).below(PAGES.1);
    let mut slot = Slot::new(handle, salt, Guest::new(salt, pages), TEMPLATE.to_owned());
    start_checker(api, &mut slot).await?;
    Ok(slot)
}

/// Starts a checker on the files that are there, and a shell in a terminal.
pub(super) async fn start_checker(api: &Link, slot: &mut Slot) -> Result<(), Violation> {
    let (salt, pages, last) = (slot.salt, slot.guest.pages(), slot.guest.last);
    let arguments = [
        format!("{HOME}/checker.py"),
        CHECKER_PORT.to_string(),
        salt.to_string(),
        pages.to_string(),
        last.to_string(),
        format!("{HOME}/checked"),
    ];
    let checker =
        ProcessConfig { cmd: "/usr/bin/python3".to_owned(), args: arguments.into(), ..Default::default() };
    let request = StartRequest { process: checker.into(), stdin: Some(false), ..Default::default() };
    api.start(&slot.handle, request).await?;
    slot.guest.forget_memory(salt, pages);
    slot.guest.terminal.pid = terminal::open(api, &slot.handle).await?;
    slot.life = Life::Running;
    let question = "/digest?nonce=0&pages=0&full=0";
    api.ask_until_answered(&slot.handle, question, check::ANSWER_LIMIT).await?;
    Ok(())
}

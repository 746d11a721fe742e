//! Looking whether what is there is what has to be.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Method;
use serde_json::Value;

use super::claims::Claims;
use super::model::{Digests, Guest, Question, Step};
use super::terminal;
use super::world::{Life, Slot};
use crate::link::{Answer, Link, NoAnswer};

/// How long a sandbox may take to answer, in the worst case: emulated, after a resume, beside all others.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How far a guest's clock may be off, in seconds, beyond the time its answer took.
const CLOCK_LIMIT_S: f64 = 1.0;
/// How long a clock may take to come right: after a live snapshot the agent is told while the guest runs.
const CLOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Something is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Violation(pub(super) String);

/// How much was looked at.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(super) struct Checks {
    /// Times a sandbox's state was compared with the model's.
    pub(super) compared: u64,
    /// Of these, times every byte of its memory was read.
    pub(super) in_full: u64,
    /// Times what the API says of a sandbox was compared.
    pub(super) described: u64,
    /// Times the shell in the open terminal was asked.
    pub(super) terminals: u64,
    /// Times a sandbox went on from its last durable pause because its machine was gone.
    pub(super) set_back: u64,
    /// Sandboxes that were lost because they had never been paused.
    pub(super) never_paused: u64,
    /// Times a request was refused because the vault was full.
    pub(super) refused_for_room: u64,
    /// Random numbers that guests gave; no two may be the same.
    #[serde(skip)]
    pub(super) random: HashSet<String>,
}

// === impl Checks ===

impl Checks {
    /// Adds what was looked at beside.
    pub(super) fn add(&mut self, more: Checks) -> Result<(), Violation> {
        let Checks {
            compared,
            in_full,
            described,
            terminals,
            set_back,
            never_paused,
            refused_for_room,
            random,
        } = more;
        self.compared += compared;
        self.in_full += in_full;
        self.described += described;
        self.terminals += terminals;
        self.set_back += set_back;
        self.never_paused += never_paused;
        self.refused_for_room += refused_for_room;
        for bytes in random {
            if !self.random.insert(bytes.clone()) {
                return wrong(format!("two sandboxes gave the same random bytes: {bytes}"));
            }
        }
        Ok(())
    }
}

// === impl Violation ===

impl From<NoAnswer> for Violation {
    fn from(error: NoAnswer) -> Violation {
        Violation(error.to_string())
    }
}

/// A violation, in words.
pub(super) fn wrong<T>(what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(what.into()))
}

/// Does the next step of a running sandbox, and looks at what came of it.
pub(super) async fn work(api: &Link, slot: &mut Slot) -> Result<(), Violation> {
    settle(api, slot).await?;
    let step = slot.guest.next(slot.salt);
    slot.guest.pending = Some(step);
    settle(api, slot).await
}

/// Has the step that was asked for last done, if it is not yet.
pub(super) async fn settle(api: &Link, slot: &mut Slot) -> Result<(), Violation> {
    let Some(step) = slot.guest.pending else { return Ok(()) };
    let said = api.ask_until_answered(&slot.handle, &target(step), ANSWER_LIMIT).await?;
    slot.guest.apply(step);
    let expected = slot.guest.chain();
    if said["step"] != step.number || said["chain"] != expected.as_str() {
        let id = slot.id();
        return wrong(format!("{id}: step {} gave {said}, and not the chain {expected}", step.number));
    }
    Ok(())
}

/// Where a step is asked for.
pub(super) fn target(step: Step) -> String {
    format!("/do?step={}&salt={}", step.number, step.salt)
}

/// Compares everything in a running sandbox with the model.
pub(super) async fn compare(
    api: &Link,
    slot: &mut Slot,
    question: Question,
    checks: &mut Checks,
) -> Result<(), Violation> {
    settle(api, slot).await?;
    let found = ask(api, slot, question).await?;
    let differences = slot.guest.digests(question).differences(&found);
    checks.compared += 1;
    checks.in_full += u64::from(question.full);
    if !differences.is_empty() {
        return wrong(format!("{}: {}", slot.id(), differences.join("; ")));
    }
    if !checks.random.insert(found.random.clone()) {
        return wrong(format!("{}: random bytes that were seen before: {}", slot.id(), found.random));
    }
    clock(api, slot).await
}

async fn ask(api: &Link, slot: &Slot, question: Question) -> Result<Digests, Violation> {
    let Question { nonce, pages, full } = question;
    let target = format!("/digest?nonce={nonce}&pages={pages}&full={}", u8::from(full));
    let said = api.ask_until_answered(&slot.handle, &target, ANSWER_LIMIT).await?;
    serde_json::from_value(said.clone())
        .map_err(|error| Violation(format!("{}: {error} in {said}", slot.id())))
}

/// The guest's clock is right, or comes right soon.
async fn clock(api: &Link, slot: &Slot) -> Result<(), Violation> {
    let deadline = tokio::time::Instant::now() + CLOCK_PATIENCE;
    loop {
        let before = now_s();
        let found = ask(api, slot, Question { nonce: 0, pages: 0, full: false }).await?;
        let after = now_s();
        if (before - CLOCK_LIMIT_S..=after + CLOCK_LIMIT_S).contains(&found.time) {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let off = found.time - after;
            return wrong(format!("{}: its clock is off by {off:.3} s", slot.id()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs_f64()).unwrap_or_default()
}

/// The shell in the open terminal goes on where it was.
pub(super) async fn shell(
    api: &Link,
    slot: &mut Slot,
    number: u32,
    checks: &mut Checks,
) -> Result<(), Violation> {
    let terminal = slot.guest.terminal;
    let expected = terminal.after(number);
    let found = terminal::change(api, &slot.handle, terminal.pid, number).await;
    let found = found.map_err(|error| Violation(format!("{}: {error}", slot.id())))?;
    checks.terminals += 1;
    if found != expected {
        return wrong(format!("{}: the open terminal's variable is {found} and not {expected}", slot.id()));
    }
    slot.guest.terminal.value = expected;
    Ok(())
}

/// Which of the points a sandbox went on from, that was resumed from one of several.
pub(super) async fn identify(
    api: &Link,
    slot: &mut Slot,
    points: Vec<Guest>,
    claims: &Claims,
) -> Result<(), Violation> {
    if let [only] = &points[..] {
        slot.guest = only.clone();
        return Ok(());
    }
    let found = ask(api, slot, Question { nonce: 0, pages: 0, full: false }).await?;
    // Newest first: of a step that was under way nobody can tell whether it was done just now or before.
    for point in points.iter().rev() {
        let mut done = point.clone();
        if let Some(step) = point.pending {
            done.apply(step);
        }
        if [point.chain(), done.chain()].contains(&found.chain) {
            slot.is_back_at(point.clone(), claims);
            return Ok(());
        }
    }
    let steps: Vec<u32> = points.iter().map(|point| point.last).collect();
    wrong(format!(
        "{}: it went on at step {}, chain {}; it was paused at {steps:?}",
        slot.id(),
        found.step,
        found.chain
    ))
}

/// What the API says of a sandbox is what it has to be.
pub(super) async fn described(
    api: &Link,
    slot: &mut Slot,
    claims: &Claims,
    checks: &mut Checks,
) -> Result<(), Violation> {
    let path = format!("/sandboxes/{}", slot.id());
    let answer = api.call(Method::GET, &path, None).await?;
    let expected = if slot.is_running() { "running" } else { "paused" };
    checks.described += 1;
    if answer.status != 200 || answer.body["state"] != expected {
        return wrong(format!("{}: it has to be {expected}, and is described as {answer}", slot.id()));
    }
    if answer.body["allowInternetAccess"] != slot.internet {
        return wrong(format!("{}: internet access has to be {}: {answer}", slot.id(), slot.internet));
    }
    // Of one that lost its machine, nobody knows yet which of its pauses it is at.
    let is_certain = matches!(&slot.life, Life::Paused { points } if points.len() == 1);
    if answer.body["durable"] == true && is_certain {
        slot.is_durable(claims);
    }
    Ok(())
}

/// The answer, if it is of one of these statuses.
pub(super) fn expect(what: &str, answer: Answer, statuses: &[u16]) -> Result<Value, Violation> {
    if statuses.contains(&answer.status) {
        return Ok(answer.body);
    }
    wrong(format!("{what} has to be answered {statuses:?}, and was {answer}"))
}

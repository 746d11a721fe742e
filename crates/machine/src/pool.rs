//! The warm pool: machines started before anybody needs them.
//!
//! Each shape has a target, which demand raises: by one with every claim that finds the pool empty, until nothing of the
//! shape was claimed for a while. One task at a time starts what is missing or ends what is too much, as [`plan`] says, and
//! only while no claim came for a moment: starting a machine takes as much processor time as resuming three. When none is
//! missing, and it has been quiet for longer, those that have not yet rehearse ([`Rehearsal`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use torpor_types::Shape;

use crate::idle::Idle;
use crate::rehearsal::Rehearsal;

/// How long nothing was claimed before a machine is started ahead of need.
const QUIET: Duration = Duration::from_millis(200);
/// The same while there is none: the next claim would wait for a start from its beginning.
const QUIET_WHILE_EMPTY: Duration = Duration::from_millis(50);
/// How long nothing was claimed before a machine rehearses, which takes as much processor time as all that is saved by it.
const QUIET_FOR_REHEARSAL: Duration = Duration::from_millis(300);
/// How long demand is remembered.
const DEMAND_LASTS: Duration = Duration::from_secs(60);

/// The idle machines.
#[derive(Debug)]
pub(crate) struct Pool {
    slots: Mutex<HashMap<Shape, Slot>>,
    limit: usize,
    changed: Notify,
}

#[derive(Debug)]
struct Slot {
    target: usize,
    /// What demand adds to the target.
    demand: usize,
    idle: VecDeque<Idle>,
    wanted_at: Instant,
    /// What its machines rehearse.
    rehearsal: Option<Arc<dyn Rehearsal>>,
    /// Name of a rehearsal that failed: it is not tried again.
    failed: Option<String>,
}

/// A shape, as [`plan`] sees it.
#[derive(Debug, Clone, Copy)]
struct Need {
    shape: Shape,
    target: usize,
    idle: usize,
    /// Of the idle ones, those that have still to rehearse.
    unrehearsed: usize,
    /// Of the idle ones, those that have rehearsed something else.
    outdated: usize,
    wanted_at: Instant,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start one more of that shape.
    Start(Shape),
    /// End one of that shape.
    End(Shape),
    /// Let one of that shape rehearse.
    Rehearse(Shape),
}

// === impl Pool ===

impl Pool {
    /// A pool of at most `limit` machines.
    pub(crate) fn new(limit: usize) -> Self {
        Self { slots: Mutex::default(), limit, changed: Notify::new() }
    }

    /// Sets how many machines of a shape are kept, and what they rehearse.
    pub(crate) fn keep(&self, shape: Shape, target: usize, rehearsal: Option<Arc<dyn Rehearsal>>) {
        let mut slots = self.slots();
        let slot = slots.entry(shape).or_insert_with(|| Slot::new(target));
        slot.target = target;
        slot.rehearsal = rehearsal.filter(|new| slot.failed.as_deref() != Some(new.name()));
        self.changed.notify_one();
    }

    /// A living machine of that shape, if there is one. That there is none raises the target.
    pub(crate) fn take(&self, shape: &Shape) -> Option<Idle> {
        let mut slots = self.slots();
        let slot = slots.get_mut(shape)?;
        if slot.wanted_at.elapsed() >= DEMAND_LASTS {
            slot.demand = 0;
        }
        slot.wanted_at = Instant::now();
        self.changed.notify_one();
        // Dead ones are dropped, which removes what they left.
        slot.idle.retain(Idle::is_alive);
        let rehearsed = slot.idle.iter().position(|idle| idle.rehearsed().is_some());
        let taken = slot.idle.remove(rehearsed.unwrap_or(0));
        if taken.is_none() {
            slot.demand = (slot.demand + 1).min(self.limit);
        }
        taken
    }

    /// Adds a machine that was started.
    pub(crate) fn put(&self, shape: Shape, idle: Idle) {
        self.slots().entry(shape).or_insert_with(|| Slot::new(0)).idle.push_back(idle);
    }

    /// Takes one machine of that shape to end it.
    pub(crate) fn discard(&self, shape: &Shape) -> Option<Idle> {
        let mut slots = self.slots();
        let slot = slots.get_mut(shape)?;
        let last = slot.idle.len().checked_sub(1)?;
        slot.idle.remove(slot.idle.iter().position(|idle| slot.is_outdated(idle)).unwrap_or(last))
    }

    /// Takes one machine of that shape that has still to rehearse, and what.
    pub(crate) fn take_unrehearsed(&self, shape: &Shape) -> Option<(Idle, Arc<dyn Rehearsal>)> {
        let mut slots = self.slots();
        let slot = slots.get_mut(shape)?;
        let rehearsal = slot.rehearsal.clone()?;
        let idle = slot.idle.remove(slot.idle.iter().position(|idle| slot.is_unrehearsed(idle))?)?;
        Some((idle, rehearsal))
    }

    /// Tries this rehearsal no more.
    pub(crate) fn give_up(&self, shape: &Shape, rehearsal: &dyn Rehearsal) {
        if let Some(slot) = self.slots().get_mut(shape) {
            slot.failed = Some(rehearsal.name().to_owned());
            slot.rehearsal = None;
        }
    }

    /// Takes all machines, and keeps none from now on.
    pub(crate) fn close(&self) -> Vec<Idle> {
        let mut slots = self.slots();
        let idle = slots.values_mut().flat_map(|slot| {
            (slot.target, slot.demand) = (0, 0);
            std::mem::take(&mut slot.idle)
        });
        idle.collect()
    }

    /// How many machines of a shape are ready.
    pub(crate) fn ready(&self, shape: &Shape) -> usize {
        self.slots().get(shape).map_or(0, |slot| slot.idle.len())
    }

    /// How many of them have rehearsed.
    pub(crate) fn rehearsed(&self, shape: &Shape) -> usize {
        self.slots()
            .get(shape)
            .map_or(0, |slot| slot.idle.iter().filter(|idle| idle.rehearsed().is_some()).count())
    }

    /// Waits until something is to be done, and for a quiet moment, and says what.
    pub(crate) async fn next(&self) -> Step {
        loop {
            let changed = self.changed.notified();
            match self.step() {
                None => changed.await,
                Some((step, quiet, wanted_at)) => match quiet.checked_sub(wanted_at.elapsed()) {
                    None => return step,
                    Some(rest) => tokio::time::sleep(rest).await,
                },
            }
        }
    }

    /// What is to be done, and how long after which moment.
    fn step(&self) -> Option<(Step, Duration, Instant)> {
        let slots = self.slots();
        let need = |(shape, slot): (&Shape, &Slot)| Need {
            shape: *shape,
            target: slot.target_now(),
            idle: slot.idle.len(),
            unrehearsed: slot.idle.iter().filter(|idle| slot.is_unrehearsed(idle)).count(),
            outdated: slot.idle.iter().filter(|idle| slot.is_outdated(idle)).count(),
            wanted_at: slot.wanted_at,
        };
        let needs: Vec<Need> = slots.iter().map(need).collect();
        let last_claim = needs.iter().map(|need| need.wanted_at).max()?;
        let step = plan(needs, self.limit)?;
        let is_empty = |shape: &Shape| slots.get(shape).is_some_and(|slot| slot.idle.is_empty());
        let quiet = match step {
            Step::Start(shape) if is_empty(&shape) => QUIET_WHILE_EMPTY,
            Step::Start(_) | Step::End(_) => QUIET,
            Step::Rehearse(_) => QUIET_FOR_REHEARSAL,
        };
        Some((step, quiet, last_claim))
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Shape, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Slot ===

impl Slot {
    fn new(target: usize) -> Self {
        Self {
            target,
            demand: 0,
            idle: VecDeque::new(),
            wanted_at: Instant::now(),
            rehearsal: None,
            failed: None,
        }
    }

    fn is_unrehearsed(&self, idle: &Idle) -> bool {
        self.rehearsal.is_some() && idle.rehearsed().is_none()
    }

    fn is_outdated(&self, idle: &Idle) -> bool {
        idle.rehearsed()
            .is_some_and(|name| self.rehearsal.as_ref().is_some_and(|rehearsal| rehearsal.name() != name))
    }

    /// How many are to be kept now. Of a shape that nobody keeps warm, none are, whatever the demand was.
    fn target_now(&self) -> usize {
        let demand = if self.wanted_at.elapsed() < DEMAND_LASTS { self.demand } else { 0 };
        if self.target == 0 { 0 } else { self.target + demand }
    }
}

/// The next step towards the targets within `limit`. Shapes that were wanted last are served first; what is too much
/// goes before what is missing comes, and that before rehearsals.
fn plan(mut needs: Vec<Need>, limit: usize) -> Option<Step> {
    needs.sort_by_key(|need| std::cmp::Reverse(need.wanted_at));
    let mut left = limit;
    let (mut missing, mut unrehearsed) = (None, None);
    for need in needs {
        let share = need.target.min(left);
        left -= share;
        if need.idle > share || need.outdated > 0 {
            return Some(Step::End(need.shape));
        }
        if need.idle < share && missing.is_none() {
            missing = Some(Step::Start(need.shape));
        }
        if need.unrehearsed > 0 && unrehearsed.is_none() {
            unrehearsed = Some(Step::Rehearse(need.shape));
        }
    }
    missing.or(unrehearsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn need(n: u32, target: usize, idle: usize, age_s: u64) -> Need {
        let shape = Shape { vcpus: n, memory_mib: 512, disk_mib: 1024 };
        let now = Instant::now();
        Need {
            shape,
            target,
            idle,
            unrehearsed: idle,
            outdated: 0,
            wanted_at: now.checked_sub(Duration::from_secs(age_s)).unwrap_or(now),
        }
    }

    proptest! {
        #[test]
        fn following_the_plan_ends_within_the_limit_with_every_target_that_fits(
            targets in proptest::collection::vec((0_usize..5, 0_usize..5), 1..6), limit in 0_usize..12,
        ) {
            let age = |i: usize| i as u64;
            let mut needs: Vec<Need> =
                targets.iter().enumerate().map(|(i, (target, idle))| need(i as u32, *target, *idle, age(i))).collect();
            let mut steps = 0;
            needs.iter_mut().for_each(|need| {
                need.outdated = need.idle / 2;
                need.unrehearsed = need.idle - need.outdated;
            });
            while let Some(step) = plan(needs.clone(), limit) {
                let (Step::Start(shape) | Step::End(shape) | Step::Rehearse(shape)) = step;
                let slot = needs.iter_mut().find(|need| need.shape == shape).unwrap();
                match step {
                    Step::Start(_) => {
                        slot.idle += 1;
                        slot.unrehearsed += 1;
                    }
                    Step::End(_) => {
                        slot.idle -= 1;
                        slot.outdated = slot.outdated.saturating_sub(1);
                        slot.unrehearsed = slot.unrehearsed.min(slot.idle - slot.outdated);
                    }
                    Step::Rehearse(_) => slot.unrehearsed -= 1,
                }
                steps += 1;
                prop_assert!(steps < 100, "it comes to no end");
            }
            let idle: usize = needs.iter().map(|need| need.idle).sum();
            let wanted: usize = needs.iter().map(|need| need.target).sum();
            prop_assert_eq!(idle, wanted.min(limit));
            prop_assert!(needs.iter().all(|need| need.unrehearsed == 0 && need.outdated == 0));
        }
    }

    #[test]
    fn the_shape_wanted_last_takes_the_room_of_one_nobody_wants_any_more() {
        let needs = vec![need(1, 2, 2, 100), need(2, 2, 0, 0)];
        let old = needs[0].shape;
        assert_eq!(plan(needs, 2), Some(Step::End(old)));
    }
}

//! What happens in a cycle. It follows from the seed and the cycle's number alone, so that the same seed gives the same
//! sequence, whatever the sandboxes made of it.

use serde::Serialize;

use super::draw::Draw;

/// What is done to a sandbox, or to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Action {
    /// A running sandbox works; a paused one is resumed first.
    Work,
    /// A running sandbox is paused, a paused one resumed.
    Toggle,
    /// Paused, waited for until it is durable, and resumed: in a new machine.
    PauseAndResume,
    /// Paused and resumed before it can be durable.
    Overtake,
    /// Paused in the middle of a step, which goes on after the resume.
    PauseAtWork,
    /// Paused without memory, and booted.
    PauseWithoutMemory,
    /// Forked; the child takes the place of another sandbox, which is killed.
    Fork,
    /// A snapshot is taken of it while it runs.
    Snapshot,
    /// A sandbox is made from a snapshot, in place of another, which is killed.
    Restore,
    /// A snapshot is deleted, or refused to be while sandboxes stand on it.
    DeleteSnapshot,
    /// The server is killed while nothing is asked of it.
    KillServer,
    /// The server is killed in the middle of an operation.
    KillServerAtWork,
    /// A machine is killed.
    KillMachine,
    /// A machine is killed just after its sandbox was paused.
    KillMachineAfterPause,
    /// The server and a machine are killed.
    KillBoth,
    /// The vault is full: what needs room is refused, nothing else happens.
    FillVault,
    /// The vault fills up while a pause is being saved.
    FillVaultWhileSaving,
    /// The vault is full while the guest writes to its disk.
    FillVaultWhileWriting,
    /// The sandbox's network is taken away, or given back.
    Network,
    /// Connections break in the middle of a request.
    DropConnection,
}

/// Every action, and how often it comes, in thousandths.
const WEIGHTS: [(Action, u32); 20] = [
    (Action::Work, 120),
    (Action::Toggle, 220),
    (Action::PauseAndResume, 100),
    (Action::Overtake, 80),
    (Action::PauseAtWork, 60),
    (Action::PauseWithoutMemory, 15),
    (Action::Fork, 60),
    (Action::Snapshot, 40),
    (Action::Restore, 40),
    (Action::DeleteSnapshot, 25),
    (Action::KillServer, 25),
    (Action::KillServerAtWork, 45),
    (Action::KillMachine, 35),
    (Action::KillMachineAfterPause, 25),
    (Action::KillBoth, 25),
    (Action::FillVault, 15),
    (Action::FillVaultWhileSaving, 10),
    (Action::FillVaultWhileWriting, 10),
    (Action::Network, 25),
    (Action::DropConnection, 25),
];

/// A cycle, as the seed has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) cycle: u32,
    pub(super) action: Action,
    /// The sandbox it is done to.
    pub(super) slot: usize,
    /// Another one, for what needs two.
    pub(super) other: usize,
    /// For variations, from 0 to 999.
    pub(super) variation: u32,
    /// Whether every byte of the sandbox is looked at afterwards.
    pub(super) full: bool,
    /// If this cycle has a power cut: how long after its beginning, in milliseconds.
    pub(super) cut_after_ms: Option<u32>,
}

// === impl Action ===

impl Action {
    /// Its name in tables.
    pub(super) fn name(self) -> String {
        let debug = format!("{self:?}");
        let words = debug.chars().flat_map(|c| {
            let space = c.is_ascii_uppercase().then_some(' ');
            space.into_iter().chain([c.to_ascii_lowercase()])
        });
        words.collect::<String>().trim_start().to_owned()
    }

    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Action> {
        WEIGHTS.iter().map(|(action, _)| *action)
    }
}

// === impl Plan ===

impl Plan {
    /// Cycle number `cycle` of the run with `seed`, over `slots` sandboxes, with a power cut in `cuts` of `cycles`.
    pub(super) fn of(seed: u64, cycle: u32, slots: usize, cuts: u32, cycles: u32) -> Plan {
        let mut draw = Draw::new(format!("cycle/{seed}/{cycle}"));
        let mut left = draw.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        let mut action = Action::Work;
        for (candidate, weight) in WEIGHTS {
            if left < weight {
                action = candidate;
                break;
            }
            left -= weight;
        }
        // At least 8 and far fewer than a number of 32 bits can say.
        let count = slots as u32;
        let slot = draw.below(count);
        let other = (slot + 1 + draw.below(count.saturating_sub(1))) % count.max(1);
        let (variation, full) = (draw.below(1000), draw.one_in(8));
        // Spread evenly, so that there are as many as were asked for, however long the run is.
        let before = |cycle: u32| u64::from(cycle) * u64::from(cuts) / u64::from(cycles.max(1));
        let cut_after_ms = (before(cycle) != before(cycle.saturating_sub(1))).then(|| draw.below(2500));
        Plan { cycle, action, slot: slot as usize, other: other as usize, variation, full, cut_after_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_sequence_and_every_action_comes() {
        let plans = |seed| (1..=1000).map(|cycle| Plan::of(seed, cycle, 8, 200, 1000)).collect::<Vec<_>>();
        assert_eq!(plans(1), plans(1));
        assert_ne!(plans(1), plans(2));
        for action in Action::all() {
            assert!(plans(1).iter().any(|plan| plan.action == action), "{action:?}");
        }
        assert!(plans(1).iter().all(|plan| plan.slot != plan.other && plan.slot < 8 && plan.other < 8));
        assert_eq!(plans(1).iter().filter(|plan| plan.cut_after_ms.is_some()).count(), 200);
    }

    #[test]
    fn names_are_words() {
        assert_eq!(Action::KillServerAtWork.name(), "kill server at work");
    }
}

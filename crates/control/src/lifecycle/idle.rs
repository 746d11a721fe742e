//! The idle timer: whether anybody has worked in a sandbox lately.
//!
//! *Work* is a command or a terminal that runs, whether or not a client follows it (the agent tells), and traffic that lasts (the
//! gateway tells, see [`Traffic`]). Requests that are over at once are not: a client that asks for health, lists or metrics
//! again and again keeps nothing alive.
//!
//! ```text
//!  gateway ── Traffic ──┐
//!  agent ── telemetry ──┴▶ Activity ── judge (pure) ──▶ idle: what happens at the deadline happens now
//!                                            └────────▶ look again then
//! ```
//!
//! There is one [`Activity`] for each run, so that the clock stands still while the sandbox is paused and begins anew with a resume.
//! Where the agent does not tell (it is of an older version, or its stream is broken), nobody knows, and nothing is ended.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use torpor_envd_api::telemetry::Work;
use torpor_gateway::{LONG, Traffic, TrafficNow};

/// What the agent told is believed for so long; it tells every 5 s.
const BELIEVED: Duration = Duration::from_secs(60);
/// How long to wait for the agent to tell.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What is done in one run of a sandbox.
#[derive(Debug)]
pub(crate) struct Activity {
    begun: Instant,
    traffic: Traffic,
    commands: Mutex<Option<Commands>>,
}

/// What the agent told of commands and terminals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Commands {
    told: Work,
    told_at: Instant,
    last_work: Option<Instant>,
}

/// What the judgement depends on.
#[derive(Debug, Clone, Copy)]
struct Signs {
    begun: Instant,
    traffic: TrafficNow,
    commands: Option<Commands>,
}

/// Whether a sandbox is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has been for as long as it may.
    Idle,
    /// Not before that moment.
    LookAgain(Instant),
}

// === impl Activity ===

impl Activity {
    /// A run begins.
    pub(super) fn new() -> Activity {
        Activity { begun: Instant::now(), traffic: Traffic::default(), commands: Mutex::default() }
    }

    /// For the gateway to count in.
    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The agent tells.
    pub(crate) fn told(&self, work: Work) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        *commands = Some(Commands::after(*commands, work, Instant::now()));
    }

    /// Whether nobody has worked for `idle`.
    pub(super) fn judge(&self, idle: Duration) -> Verdict {
        let commands = *self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        Signs { begun: self.begun, traffic: self.traffic.now(), commands }.judge(idle, Instant::now())
    }
}

// === impl Commands ===

impl Commands {
    fn after(before: Option<Commands>, told: Work, now: Instant) -> Commands {
        let has_worked = match before {
            // Those that were started before this run were not work of this run.
            None => told.open > 0,
            Some(before) => told.open > 0 || before.told != told,
        };
        let last_work = if has_worked { Some(now) } else { before.and_then(|before| before.last_work) };
        Commands { told, told_at: now, last_work }
    }
}

// === impl Signs ===

impl Signs {
    fn judge(&self, idle: Duration, now: Instant) -> Verdict {
        let Some(commands) = self.commands.filter(|commands| now < commands.told_at + BELIEVED) else {
            return Verdict::LookAgain(now + ASK_AGAIN);
        };
        if commands.told.open > 0 || self.traffic.is_work {
            // Whenever that ends, it is not before now.
            return Verdict::LookAgain(now + idle);
        }
        let last_work = [Some(self.begun), commands.last_work, self.traffic.last_work];
        let due = last_work.into_iter().flatten().max().unwrap_or(now) + idle;
        if now < due {
            return Verdict::LookAgain(due);
        }
        match self.traffic.oldest {
            // It began in time, and whether it is work shows when it has lasted.
            Some(began) if began <= due => Verdict::LookAgain(began + LONG),
            // What began later is too late, or clients that poll by turns would keep it alive.
            Some(_) | None => Verdict::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn nothing(begun: Instant, told_at: Instant) -> Signs {
        let traffic = TrafficNow { is_work: false, last_work: None, oldest: None };
        let commands = Some(Commands { told: Work::default(), told_at, last_work: None });
        Signs { begun, traffic, commands }
    }

    #[test]
    fn a_run_in_which_nothing_happens_is_idle_when_its_time_is_over_and_not_before() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(nothing(start, at(59)).judge(IDLE, at(59)), Verdict::LookAgain(at(60)));
        assert_eq!(nothing(start, at(60)).judge(IDLE, at(60)), Verdict::Idle);
    }

    #[test]
    fn where_nobody_knows_nothing_is_ended() {
        let start = Instant::now();
        let late = start + Duration::from_secs(3600);
        let never_told = Signs { commands: None, ..nothing(start, start) };
        assert!(matches!(never_told.judge(IDLE, late), Verdict::LookAgain(_)));
        assert!(matches!(nothing(start, start).judge(IDLE, late), Verdict::LookAgain(_)));
    }

    #[test]
    fn a_command_counts_while_it_runs_and_one_that_nobody_saw_running_counts_when_it_is_told_of() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let work = |open, started| Work { open, started };
        let first = Commands::after(None, work(0, 7), at(1));
        assert_eq!(first.last_work, None);
        let same = Commands::after(Some(first), work(0, 7), at(6));
        assert_eq!(same.last_work, None);
        let short = Commands::after(Some(same), work(0, 8), at(11));
        assert_eq!(short.last_work, Some(at(11)));
        let running = Commands::after(Some(short), work(1, 9), at(16));
        let signs = Signs { commands: Some(running), ..nothing(start, start) };
        assert_eq!(signs.judge(IDLE, at(20)), Verdict::LookAgain(at(80)));
        let over = Commands::after(Some(running), work(0, 9), at(70));
        let signs = Signs { commands: Some(over), ..nothing(start, start) };
        assert_eq!(signs.judge(IDLE, at(90)), Verdict::LookAgain(at(130)));
    }

    #[test]
    fn an_exchange_that_began_in_time_is_given_the_time_to_show_what_it_is() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let with_oldest = |oldest| {
            let signs = nothing(start, at(60));
            Signs { traffic: TrafficNow { oldest: Some(oldest), ..signs.traffic }, ..signs }
        };
        assert_eq!(with_oldest(at(59)).judge(IDLE, at(60)), Verdict::LookAgain(at(64)));
        assert_eq!(with_oldest(at(62)).judge(IDLE, at(64)), Verdict::Idle);
    }

    proptest! {
        #[test]
        fn nothing_is_idle_within_its_time_of_work_and_a_look_is_never_in_the_past(
            idle_s in 1_u64..100,
            now_s in 0_u64..300,
            told_s in 0_u64..300,
            open in 0_u64..2,
            commands_s in proptest::option::of(0_u64..300),
            traffic_s in proptest::option::of(0_u64..300),
            oldest_s in proptest::option::of(0_u64..300),
        ) {
            let start = Instant::now();
            let at = |seconds: u64| start + Duration::from_secs(seconds.min(now_s));
            let oldest = oldest_s.map(at);
            let is_work = oldest.is_some_and(|began| at(now_s) >= began + LONG);
            let traffic = TrafficNow { is_work, last_work: traffic_s.map(at), oldest };
            let told = Work { open, started: 1 };
            let commands = Commands { told, told_at: at(told_s), last_work: commands_s.map(at) };
            let signs = Signs { begun: start, traffic, commands: Some(commands) };
            let (idle, now) = (Duration::from_secs(idle_s), at(now_s));
            match signs.judge(idle, now) {
                Verdict::LookAgain(then) => prop_assert!(then > now),
                Verdict::Idle => {
                    prop_assert!(open == 0 && !is_work);
                    for work in [Some(start), commands.last_work, traffic.last_work].into_iter().flatten() {
                        prop_assert!(now >= work + idle);
                    }
                }
            }
        }
    }
}

//! What a team may have: how many sandboxes run at once, and how long each may run.
//!
//! A sandbox *runs* as long as it has, or is about to have, a machine that is not stopped for good: while it is created,
//! runs, is being paused or resumed. Whoever is about to start one takes a [`Place`] first. Places and published
//! sandboxes are counted together, by id, so that however many starts are under way at once none slips past the limit,
//! and a start that fails gives its place back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use torpor_types::{SandboxId, TeamId};

use super::Entries;
use super::api::LifecycleError;
use crate::registry::StoredState;

/// The limits of one team, or of those that have none of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sandboxes that run at the same time; `None` for any number.
    pub max_running: Option<u32>,
    /// The longest a sandbox may run without being resumed, in seconds.
    pub max_timeout_s: i64,
}

/// The starts that are under way, by team.
#[derive(Debug, Clone, Default)]
pub(super) struct Starts(Arc<Mutex<HashMap<TeamId, HashSet<SandboxId>>>>);

/// A place among a team's running sandboxes. Hold it until the sandbox is published as running, or has failed to.
#[derive(Debug)]
pub(super) struct Place {
    starts: Starts,
    team: TeamId,
    id: SandboxId,
}

// === impl Starts ===

impl Starts {
    /// Takes a place for the sandbox `id` of `team`, if fewer than `max_running` others run.
    pub(super) fn take_place(
        &self,
        entries: &Entries,
        team: &TeamId,
        id: &SandboxId,
        max_running: Option<u32>,
    ) -> Result<Place, LifecycleError> {
        let mut starts = self.lock();
        let starting = starts.entry(team.clone()).or_default();
        if let Some(max_running) = max_running {
            let mut others = starting.clone();
            others.extend(running(entries, team));
            others.remove(id);
            if others.len() >= max_running as usize {
                return Err(LifecycleError::TooManyRunning { max_running });
            }
        }
        starting.insert(id.clone());
        Ok(Place { starts: self.clone(), team: team.clone(), id: id.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TeamId, HashSet<SandboxId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn running(entries: &Entries, team: &TeamId) -> HashSet<SandboxId> {
    let entries = entries.read().unwrap_or_else(PoisonError::into_inner);
    let statuses = entries.values().map(|entry| entry.status.borrow());
    let runs = statuses.filter(|status| {
        let row = &status.row;
        let stopped = matches!(row.state, StoredState::Paused | StoredState::Killing);
        row.team_id == *team && !stopped && !status.gone
    });
    runs.map(|status| status.row.id.clone()).collect()
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        let mut starts = self.starts.lock();
        if let Some(starting) = starts.get_mut(&self.team) {
            starting.remove(&self.id);
            if starting.is_empty() {
                starts.remove(&self.team);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_starts_at_once_only_as_many_as_the_limit_get_a_place() {
        let (starts, entries, team) = (Starts::default(), Entries::default(), TeamId::random());
        let threads: Vec<_> = (0..16)
            .map(|_| {
                let (starts, entries, team) = (starts.clone(), entries.clone(), team.clone());
                std::thread::spawn(move || starts.take_place(&entries, &team, &SandboxId::random(), Some(3)))
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    }

    #[test]
    fn a_start_that_ended_gives_its_place_back_and_a_team_does_not_use_up_anothers() {
        let (starts, entries) = (Starts::default(), Entries::default());
        let take = |team: &TeamId| starts.take_place(&entries, team, &SandboxId::random(), Some(1));
        let (one, other) = (TeamId::random(), TeamId::random());
        let place = take(&one).unwrap();
        assert!(matches!(take(&one), Err(LifecycleError::TooManyRunning { max_running: 1 })));
        assert!(take(&other).is_ok());
        drop(place);
        assert!(take(&one).is_ok());
        assert!(starts.lock().is_empty(), "nothing is kept of starts that ended");
    }

    #[test]
    fn a_sandbox_does_not_stand_in_its_own_way() {
        let (starts, entries, team, id) =
            (Starts::default(), Entries::default(), TeamId::random(), SandboxId::random());
        let _first = starts.take_place(&entries, &team, &id, Some(1)).unwrap();
        assert!(starts.take_place(&entries, &team, &id, Some(1)).is_ok());
        assert!(starts.take_place(&entries, &team, &id, Some(0)).is_err());
    }
}

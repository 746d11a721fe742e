//! What was reported durable, and has to be there whatever happens: for those who look at the vault from outside, while
//! the run goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::model::Guest;

/// The claims of a run. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(Arc<Mutex<Held>>);

/// All claims at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    /// Of sandboxes, by id.
    pub(super) sandboxes: BTreeMap<String, SandboxClaim>,
    /// Snapshots that users took, by id: what has to be in them.
    pub(super) snapshots: BTreeMap<String, Guest>,
}

/// A sandbox has a durable pause.
#[derive(Debug, Clone)]
pub(super) struct SandboxClaim {
    /// Its machine was stopped no earlier than this.
    pub(super) not_before: Timestamp,
    /// What may be in it: the pause that was reported durable, or one that came later.
    pub(super) points: Vec<Guest>,
}

// === impl Claims ===

impl Claims {
    /// Changes them.
    pub(super) fn change(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.lock());
    }

    /// What they are now, and what `look` sees while they cannot change.
    pub(super) fn while_held<T>(&self, look: impl FnOnce() -> T) -> (Held, T) {
        let held = self.lock();
        (held.clone(), look())
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Which snapshots machines stand on, and when one that nobody names any more may go.
//!
//! A machine maps the memory of the snapshot it came from, its *base*, and a pause of it grows out of that
//! snapshot. So a base outlives its name: what is [released](Bases::release) while machines stand on it is removed when
//! the last of them is gone. A server that ends before that leaves it to the next one's reconciliation.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use torpor_types::SnapshotId;
use torpor_vault::Vault;

use super::actor::chain;

/// All bases of a node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Bases(Arc<Inner>);

/// Keeps a snapshot for a machine (or for the making of one) as long as it is held.
pub(super) struct Base {
    id: SnapshotId,
    bases: Bases,
}

struct Inner {
    vault: Vault,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashMap<SnapshotId, usize>,
    released: HashSet<SnapshotId>,
}

// === impl Bases ===

impl Bases {
    /// None yet.
    pub(super) fn new(vault: Vault) -> Bases {
        Bases(Arc::new(Inner { vault, state: Mutex::default() }))
    }

    /// Keeps `id` until the answer is dropped.
    pub(super) fn hold(&self, id: &SnapshotId) -> Base {
        *self.state().held.entry(id.clone()).or_default() += 1;
        Base { id: id.clone(), bases: self.clone() }
    }

    /// Nobody names `id` any more: removes it, now or when the last machine that stands on it is gone.
    pub(super) async fn release(&self, id: SnapshotId) {
        let held = {
            let mut state = self.state();
            let held = state.held.contains_key(&id);
            if held {
                state.released.insert(id.clone());
            }
            held
        };
        if !held {
            let vault = self.0.vault.clone();
            // A panic of the removal was reported by its thread; what is left is removed by the next start.
            let _ = tokio::task::spawn_blocking(move || remove(&vault, &id)).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(vault: &Vault, id: &SnapshotId) {
    if let Err(error) = vault.remove(id) {
        let error = chain(&error);
        tracing::error!(snapshot = %id, error, "a snapshot nobody needs could not be removed; the next start removes it");
    }
}

// === impl Base ===

impl Base {
    /// Which snapshot it is.
    pub(super) fn id(&self) -> &SnapshotId {
        &self.id
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let mut state = self.bases.state();
        let Some(count) = state.held.get_mut(&self.id) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        state.held.remove(&self.id);
        if !state.released.remove(&self.id) {
            return;
        }
        // Without a runtime the server is ending, and the next one removes it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (vault, id) = (self.bases.0.vault.clone(), self.id.clone());
            runtime.spawn_blocking(move || remove(&vault, &id));
        }
    }
}

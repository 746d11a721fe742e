//! User ids for QEMU processes: each has its own, so that one that is taken over can touch no other.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The ids in use.
#[derive(Debug, Clone)]
pub(crate) struct Uids {
    base: u32,
    used: Arc<Mutex<HashSet<u32>>>,
}

/// An id that nobody else gets until this is dropped.
#[derive(Debug)]
pub(crate) struct UidLease {
    uid: u32,
    used: Arc<Mutex<HashSet<u32>>>,
}

// === impl Uids ===

impl Uids {
    /// Ids from `base` on, but for those that are `taken`.
    pub(crate) fn new(base: u32, taken: impl IntoIterator<Item = u32>) -> Self {
        Self { base, used: Arc::new(Mutex::new(taken.into_iter().collect())) }
    }

    /// The lowest that is free.
    pub(crate) fn lease(&self) -> UidLease {
        let mut used = lock(&self.used);
        let mut uid = self.base;
        while !used.insert(uid) {
            uid += 1;
        }
        UidLease { uid, used: self.used.clone() }
    }

    /// The id a machine already has.
    pub(crate) fn adopt(&self, uid: u32) -> UidLease {
        lock(&self.used).insert(uid);
        UidLease { uid, used: self.used.clone() }
    }
}

// === impl UidLease ===

impl UidLease {
    pub(crate) fn get(&self) -> u32 {
        self.uid
    }
}

impl Drop for UidLease {
    fn drop(&mut self) {
        lock(&self.used).remove(&self.uid);
    }
}

fn lock(used: &Mutex<HashSet<u32>>) -> MutexGuard<'_, HashSet<u32>> {
    used.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_again_only_after_it_came_back() {
        let uids = Uids::new(100, [101]);
        let (first, second) = (uids.lease(), uids.lease());
        assert_eq!((first.get(), second.get()), (100, 102));
        drop(first);
        assert_eq!(uids.lease().get(), 100);
    }
}

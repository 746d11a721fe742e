//! Slots: which uplink has which addresses.
//!
//! Slot *n* owns the addresses 2*n* (host) and 2*n*+1 (namespace) of the pool, a `/31`, and the interface name `tp<instance><n in hex>`.
//! The kernel is the only record of slots in use: an address of the pool on any interface of the host marks its slot as taken, so that neither a
//! restart nor a second server on the same pool leads to a collision.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;

use crate::Instance;
use crate::rules::uplink_prefix;

/// Slots fit four hexadecimal digits in an interface's name.
const MOST_SLOTS: u32 = 0x1_0000;

/// A pair of addresses of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot(pub(crate) u32);

/// Hands out slots.
#[derive(Debug)]
pub(crate) struct Slots {
    instance: Instance,
    pool: Ipv4Net,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    held: HashSet<u32>,
    next: u32,
}

/// A slot that is this process's until dropped.
#[derive(Debug)]
pub(crate) struct HeldSlot {
    pub(crate) slot: Slot,
    slots: Arc<Slots>,
}

// === impl Slots ===

impl Slots {
    /// `None` if the pool is too small.
    pub(crate) fn new(instance: Instance, pool: Ipv4Net) -> Option<Arc<Self>> {
        let pool = pool.trunc();
        if pool.prefix_len() > 30 {
            return None;
        }
        // Servers that share a pool start at different places in it.
        let hash = blake3::hash(instance.as_str().as_bytes());
        let [a, b, ..] = *hash.as_bytes();
        let next = u32::from(u16::from_be_bytes([a, b]));
        let state = Mutex::new(State { held: HashSet::new(), next });
        Some(Arc::new(Self { instance, pool, state }))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        let addresses = 1_u64 << (32 - self.pool.prefix_len());
        u32::try_from(addresses / 2).map_or(MOST_SLOTS, |slots| slots.min(MOST_SLOTS))
    }

    /// Takes a slot none of whose addresses is in `in_use`; the one freed longest ago, more or less. `None` if
    /// all are taken.
    pub(crate) fn take(self: &Arc<Self>, in_use: &[Ipv4Addr]) -> Option<HeldSlot> {
        let taken: HashSet<u32> =
            in_use.iter().filter_map(|address| self.slot_of(*address)).map(|s| s.0).collect();
        let count = self.count();
        let mut state = self.state();
        let start = state.next;
        let slot = (0..count)
            .map(|offset| (start % count + offset) % count)
            .find(|slot| !taken.contains(slot) && !state.held.contains(slot))?;
        state.next = (slot + 1) % count;
        state.held.insert(slot);
        Some(HeldSlot { slot: Slot(slot), slots: self.clone() })
    }

    /// Takes the slot of `address`; `None` if it is none of the pool, or held already.
    pub(crate) fn take_at(self: &Arc<Self>, address: Ipv4Addr) -> Option<HeldSlot> {
        let slot = self.slot_of(address)?;
        self.state().held.insert(slot.0).then(|| HeldSlot { slot, slots: self.clone() })
    }

    /// Whether this process holds the slot whose interface on the host is `name`.
    pub(crate) fn holds(&self, name: &str) -> bool {
        let held = self.state();
        held.held.iter().any(|slot| self.uplink_name(Slot(*slot)) == name)
    }

    pub(crate) fn host_address(&self, slot: Slot) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.pool.network().to_bits() + 2 * slot.0)
    }

    pub(crate) fn namespace_address(&self, slot: Slot) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.host_address(slot).to_bits() + 1)
    }

    pub(crate) fn uplink_name(&self, slot: Slot) -> String {
        format!("{}{:04x}", uplink_prefix(&self.instance), slot.0)
    }

    fn slot_of(&self, address: Ipv4Addr) -> Option<Slot> {
        let slot =
            self.pool.contains(&address).then(|| (address.to_bits() - self.pool.network().to_bits()) / 2)?;
        (slot < self.count()).then_some(Slot(slot))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single step, so a panic elsewhere cannot have left it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl HeldSlot ===

impl Drop for HeldSlot {
    fn drop(&mut self) {
        self.slots.state().held.remove(&self.slot.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slots(pool: &str) -> Arc<Slots> {
        Slots::new("00000001".parse().unwrap(), pool.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_pool_serves_as_many_sandboxes_as_it_has_pairs_and_then_says_so() {
        let slots = slots("10.9.8.0/29");
        let held: Vec<_> = (0..4).map(|_| slots.take(&[]).unwrap()).collect();
        assert!(slots.take(&[]).is_none());
        drop(held);
        assert!(slots.take(&[]).is_some());
    }

    #[test]
    fn a_pool_without_a_pair_is_refused() {
        assert!(Slots::new("00000001".parse().unwrap(), "10.0.0.0/31".parse().unwrap()).is_none());
    }

    #[test]
    fn the_largest_pool_still_gives_names_that_fit() {
        let slots = slots("10.0.0.0/8");
        assert_eq!(slots.count(), 0x1_0000);
        assert_eq!(slots.uplink_name(Slot(0xffff)).len(), 14);
    }

    proptest! {
        #[test]
        fn no_two_sandboxes_share_an_address(prefix in 22_u8..=30, used in proptest::collection::vec(any::<u32>(), 0..20)) {
            let pool = Ipv4Net::new(Ipv4Addr::new(10, 201, 0, 0), prefix).unwrap();
            let slots = Slots::new("00000001".parse().unwrap(), pool).unwrap();
            let mut seen: HashSet<Ipv4Addr> =
                used.iter().map(|n| Ipv4Addr::from_bits(pool.network().to_bits() + n % (1 << (32 - prefix)))).collect();
            let in_use: Vec<_> = seen.iter().copied().collect();
            let mut held = Vec::new();
            while let Some(slot) = slots.take(&in_use) {
                for address in [slots.host_address(slot.slot), slots.namespace_address(slot.slot)] {
                    prop_assert!(pool.contains(&address));
                    prop_assert!(seen.insert(address));
                }
                held.push(slot);
            }
            prop_assert!(held.len() <= slots.count() as usize);
        }
    }
}

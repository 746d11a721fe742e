//! Guests that stand still because the vault has no room for their memory.
//!
//! The first write to a page of a RAM file takes up room. Where there is none the kernel can only kill whoever writes, which
//! is the machine, with everything in it. So guests with such memory are stopped before there is none, and go on when there
//! is room again: they lose nothing but time, as with a disk that is full.

use std::sync::atomic::Ordering;

use super::Machine;
use crate::machines::Machines;

// === impl Machine ===

impl Machine {
    /// Whether what its guest writes to memory takes up room in the vault at once.
    pub fn memory_fills_vault(&self) -> bool {
        self.0.berth.memory.fills_vault()
    }

    /// Whether its guest may not run now.
    pub(super) fn has_to_wait_for_room(&self) -> bool {
        self.memory_fills_vault() && self.0.live.upgrade().is_some_and(|live| live.is_room_low())
    }

    /// Stops the guest, which for everybody else goes on running.
    async fn hold(&self) {
        let _alone = self.0.stopped.write().await;
        if !self.runs() || self.0.held.load(Ordering::Acquire) {
            return;
        }
        match self.0.vm.stop().await {
            Ok(()) => {
                self.0.held.store(true, Ordering::Release);
                tracing::warn!(machine = %self.id(), "a guest stands still: the vault has too little room for its memory");
            }
            Err(error) => {
                tracing::error!(machine = %self.id(), %error, "a guest cannot be stopped although its memory fills the vault");
            }
        }
    }

    /// Lets a guest go on that was stopped by [`Machine::hold`].
    async fn release(&self) {
        let _alone = self.0.stopped.write().await;
        // Of one that was stopped on purpose meanwhile, `cont` takes care.
        if !self.runs() || !self.0.held.swap(false, Ordering::AcqRel) {
            return;
        }
        match self.0.vm.cont().await {
            Ok(()) => self.0.stood_still.send_modify(|count| *count += 1),
            Err(error) => {
                tracing::error!(machine = %self.id(), %error, "a guest that waited for room in the vault does not go on");
            }
        }
    }
}

// === impl Machines ===

impl Machines {
    /// The machines whose guests fill the vault by what they write to memory.
    pub fn filling_vault(&self) -> Vec<Machine> {
        let mut all = self.live().all();
        all.retain(Machine::memory_fills_vault);
        all
    }

    /// Has the guests that fill the vault stand still as long as room `is_low`. To be told again and again.
    pub async fn set_room_is_low(&self, is_low: bool) {
        self.live().set_room_is_low(is_low);
        let machines = self.filling_vault();
        let mut telling = tokio::task::JoinSet::new();
        for machine in machines {
            telling.spawn(async move {
                match is_low {
                    true => machine.hold().await,
                    false => machine.release().await,
                }
            });
        }
        telling.join_all().await;
    }
}

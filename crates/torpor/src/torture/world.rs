//! The sandboxes of a run as they have to be: a number of *slots*, each with a sandbox in it, and the snapshots taken of
//! them.
//!
//! A *point* is a state that was captured by a pause. The last one that was reported durable must be there whatever
//! happens; one that came after it may be.

use jiff::Timestamp;

use super::claims::{Claims, SandboxClaim};
use super::model::Guest;
use crate::link::Handle;

/// Name of the template that sandboxes start from.
pub(super) const TEMPLATE: &str = "base";

/// A sandbox, and what has to be in it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) handle: Handle,
    /// Makes its steps differ from those of sandboxes that began where it did.
    pub(super) salt: u32,
    pub(super) life: Life,
    /// What it holds: while it runs, now; while it is paused, one of its points.
    pub(super) guest: Guest,
    /// The last pause that was reported durable, and when it was asked for.
    pub(super) durable: Option<(Timestamp, Guest)>,
    /// Pauses after that, or being made, oldest first.
    pub(super) since: Vec<(Timestamp, Guest)>,
    /// What it was made from.
    pub(super) template: String,
    /// Whether the internet is open to it.
    pub(super) internet: bool,
}

/// What a sandbox is to the outside.
#[derive(Debug, Clone)]
pub(super) enum Life {
    Running,
    /// Paused, at one of these points: at one only, unless its machine was lost.
    Paused {
        points: Vec<Guest>,
    },
}

/// A snapshot that was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) id: String,
    pub(super) guest: Guest,
}

// === impl Slot ===

impl Slot {
    /// A sandbox that was just made, from `template`, and holds `guest`.
    pub(super) fn new(handle: Handle, salt: u32, guest: Guest, template: String) -> Slot {
        let (durable, since) = (None, Vec::new());
        Slot { handle, salt, life: Life::Running, guest, durable, since, template, internet: true }
    }

    pub(super) fn id(&self) -> &str {
        &self.handle.id
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.life, Life::Running)
    }

    /// A pause is about to be asked for: what it captures may be found from now on.
    pub(super) fn pausing(&mut self, claims: &Claims) {
        self.since.push((Timestamp::now(), self.guest.clone()));
        self.claim(claims);
    }

    /// The pause that was asked for last was made.
    pub(super) fn paused(&mut self) {
        self.life = Life::Paused { points: vec![self.guest.clone()] };
    }

    /// The pause that it is in was reported durable.
    pub(super) fn is_durable(&mut self, claims: &Claims) {
        if let Some(point) = self.since.pop() {
            self.durable = Some(point);
            self.since.clear();
            self.claim(claims);
        }
    }

    /// Its machine is gone: every point it may be at now. None: it may be lost.
    pub(super) fn points(&self) -> Vec<Guest> {
        self.durable.iter().chain(&self.since).map(|(_, guest)| guest.clone()).collect()
    }

    /// It went on from a point that is on disk, and so is durable; `guest` is what was found there.
    pub(super) fn is_back_at(&mut self, guest: Guest, claims: &Claims) {
        let found = |point: &&(Timestamp, Guest)| {
            point.1.chain() == guest.chain() && point.1.pending == guest.pending
        };
        if let Some(at) = self.since.iter().find(found).map(|(at, _)| *at) {
            self.durable = Some((at, guest.clone()));
            self.since.clear();
        }
        self.guest = guest;
        self.claim(claims);
    }

    /// Tells those who look at the vault what has to be there of it.
    pub(super) fn claim(&self, claims: &Claims) {
        claims.change(|held| {
            if let Some((not_before, _)) = self.durable {
                let claim = SandboxClaim { not_before, points: self.points() };
                held.sandboxes.insert(self.handle.id.clone(), claim);
            }
        });
    }

    /// Nothing of it has to be there any more: it is about to be killed.
    pub(super) fn give_up(&self, claims: &Claims) {
        claims.change(|held| {
            held.sandboxes.remove(&self.handle.id);
        });
    }
}

//! How much space the vault has, and who may take it.
//!
//! Two limits hold at the same time: a *reserve*, bytes of the file system that are kept free, and, if the operator
//! set one, a *budget*, bytes that the vault may take up in all. What the vault takes up is what its file system has in use
//! where it has one of its own (an image, a partition), which the file system knows. In a directory of a larger file system it
//! is measured, which takes a while: [`Vault::measure`](crate::Vault::measure). Between two measurements, all that becomes
//! less free is taken for the vault's, so that the budget may be refused too early and is never exceeded.
//!
//! Whoever is about to write takes a [`Claim`] first. Claims are counted together, so that of many who come at the same time none
//! gets room that another was promised.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::mounts::{backing_file, mount_of};
use crate::{Limit, NoRoom};
use torpor_sys::extents::extents;

/// How much of a vault may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file system that are kept free.
    pub reserve_bytes: u64,
    /// Bytes that the vault may take up; `None`: as many as there are.
    pub budget_bytes: Option<u64>,
}

/// How much space the vault has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Size of the vault's file system.
    pub total_bytes: u64,
    /// What can still be written: in an image file, not more than the file system around it has free.
    ///
    /// A sparse image promises more than its host may have. If the host's file system fills up, the vault's gets I/O errors
    /// instead of "no space": publications then fail (cleanly), which this figure is there to prevent.
    pub free_bytes: u64,
    /// What the vault takes up; 0 where nobody wants to know (no budget) and it would have to be measured.
    pub used_bytes: u64,
    /// The limits in force.
    pub limits: Limits,
}

/// Room that is promised to whoever holds this.
#[derive(Debug)]
pub struct Claim {
    bytes: u64,
    rooms: Arc<Rooms>,
}

/// Counts the room of one vault.
#[derive(Debug)]
pub(crate) struct Rooms {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    claimed_bytes: u64,
    measured: Option<Measured>,
}

/// What the vault took up, and how much was free then.
#[derive(Debug, Clone, Copy)]
struct Measured {
    used_bytes: u64,
    free_bytes: u64,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self { reserve_bytes: crate::DEFAULT_RESERVE_BYTES, budget_bytes: None }
    }
}

// === impl Room ===

impl Room {
    /// What may be written within both limits.
    pub fn available_bytes(&self) -> u64 {
        self.tighter().0
    }

    /// What may be written, and the limit that says so.
    fn tighter(&self) -> (u64, Limit) {
        let Limits { reserve_bytes, budget_bytes } = self.limits;
        let by_reserve = (self.free_bytes.saturating_sub(reserve_bytes), Limit::Reserve(reserve_bytes));
        let by_budget =
            budget_bytes.map(|budget| (budget.saturating_sub(self.used_bytes), Limit::Budget(budget)));
        by_budget.filter(|(bytes, _)| *bytes < by_reserve.0).unwrap_or(by_reserve)
    }
}

// === impl Rooms ===

impl Rooms {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// How much space the vault in `dir` has.
    pub(crate) fn room(&self, dir: &Path) -> io::Result<Room> {
        let measured = self.lock().measured;
        self.room_since(dir, measured)
    }

    /// Takes `bytes` if they are there, beside all that was claimed before.
    pub(crate) fn claim(self: &Arc<Self>, dir: &Path, bytes: u64) -> Result<Claim, NoRoom> {
        let mut state = self.lock();
        // If the file system does not say how much is free, nothing is.
        let room = self.room_since(dir, state.measured);
        let (available, limit) = room.map_or((0, Limit::Unknown), |room| room.tighter());
        let available_bytes = available.saturating_sub(state.claimed_bytes);
        if let Some(missing_bytes) = bytes.checked_sub(available_bytes).filter(|missing| *missing > 0) {
            return Err(NoRoom { wanted_bytes: bytes, available_bytes, missing_bytes, limit });
        }
        state.claimed_bytes += bytes;
        Ok(Claim { bytes, rooms: Arc::clone(self) })
    }

    /// Measures what the vault takes up, if the file system does not know and somebody wants to.
    pub(crate) fn measure(&self, dir: &Path) -> io::Result<()> {
        if self.limits.budget_bytes.is_some() && !is_own_file_system(dir)? {
            // Free space is looked at first: what is written meanwhile is counted twice and not overlooked.
            let free_bytes = Space::of(dir)?.free_bytes;
            let used_bytes = occupied_bytes(dir)?;
            self.lock().measured = Some(Measured { used_bytes, free_bytes });
        }
        Ok(())
    }

    fn room_since(&self, dir: &Path, measured: Option<Measured>) -> io::Result<Room> {
        let inside = Space::of(dir)?;
        let mut free_bytes = inside.free_bytes;
        let mount = mount_of(dir)?;
        let used_bytes = match (&mount, measured) {
            (_, Some(then)) => then.used_bytes + then.free_bytes.saturating_sub(free_bytes),
            (Some(mount), None) if mount.point == dir => inside.total_bytes.saturating_sub(free_bytes),
            (_, None) => 0,
        };
        if let Some(image) = mount.and_then(|mount| backing_file(&mount.source)) {
            free_bytes = free_bytes.min(Space::of(&image)?.free_bytes);
        }
        Ok(Room { total_bytes: inside.total_bytes, free_bytes, used_bytes, limits: self.limits })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Claim ===

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.rooms.lock();
        state.claimed_bytes = state.claimed_bytes.saturating_sub(self.bytes);
    }
}

/// Space of a file system, in bytes.
pub(crate) struct Space {
    pub(crate) total_bytes: u64,
    pub(crate) free_bytes: u64,
}

impl Space {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let space = rustix::fs::statvfs(path)?;
        Ok(Self { total_bytes: space.f_blocks * space.f_frsize, free_bytes: space.f_bavail * space.f_frsize })
    }
}

fn is_own_file_system(dir: &Path) -> io::Result<bool> {
    Ok(mount_of(dir)?.is_some_and(|mount| mount.point == dir))
}

/// Bytes that the files below `dir` occupy, those that several share counted once.
fn occupied_bytes(dir: &Path) -> io::Result<u64> {
    let mut pieces = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in gone_is_none(std::fs::read_dir(&dir))?.into_iter().flatten() {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file()
                && let Some(file) = gone_is_none(File::open(entry.path()))?
            {
                for extent in extents(&file)? {
                    let bytes = pieces.entry(extent.physical).or_insert(0);
                    *bytes = extent.bytes.max(*bytes);
                }
            }
        }
    }
    let (mut sum, mut counted_to) = (0, 0);
    for (start, bytes) in pieces {
        let end = start + bytes;
        sum += end.saturating_sub(start.max(counted_to));
        counted_to = counted_to.max(end);
    }
    Ok(sum)
}

/// A file that was removed since its directory was read takes up nothing.
fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { reserve_bytes: 100, budget_bytes: Some(1000) };

    #[test]
    fn of_reserve_and_budget_the_tighter_holds() {
        let room =
            |free_bytes, used_bytes| Room { total_bytes: 5000, free_bytes, used_bytes, limits: LIMITS };
        assert_eq!(room(400, 0).tighter(), (300, Limit::Reserve(100)));
        assert_eq!(room(4000, 800).tighter(), (200, Limit::Budget(1000)));
        assert_eq!(room(4000, 1200).tighter(), (0, Limit::Budget(1000)));
        assert_eq!(room(50, 1200).tighter(), (0, Limit::Reserve(100)));
    }

    #[test]
    fn what_was_promised_to_one_is_not_there_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let free = Space::of(&dir).unwrap().free_bytes;
        let rooms = Rooms::new(Limits { reserve_bytes: free / 2, budget_bytes: None });
        let most = free / 3;
        let first = rooms.claim(&dir, most).unwrap();
        let refused = rooms.claim(&dir, most).unwrap_err();
        assert!(refused.missing_bytes > 0 && refused.available_bytes < most, "{refused}");
        drop(first);
        rooms.claim(&dir, most).unwrap();
    }

    #[test]
    fn what_disappears_after_a_measurement_counts_as_the_vaults() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let rooms = Rooms::new(Limits { reserve_bytes: 0, budget_bytes: Some(1 << 40) });
        let free_bytes = Space::of(&dir).unwrap().free_bytes;
        // As if so much had been free when the vault took up 500 bytes.
        rooms.lock().measured = Some(Measured { used_bytes: 500, free_bytes: free_bytes + (1 << 40) });
        let refused = rooms.claim(&dir, 1 << 40).unwrap_err();
        assert_eq!(refused.limit, Limit::Budget(1 << 40));
    }
}

//! The store itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use torpor_types::SnapshotId;

use crate::files::{clones, make_dir, sync_dir};
use crate::mounts::mount_of;
use crate::room::Rooms;
use crate::sums::Written;
use crate::{
    Claim, Limits, ListError, NoRoom, OpenError, ReadError, RemoveError, Room, Snapshot, StageError, Staging,
    Verified, VerifyError, interruption, verify, version,
};

/// How much of a vault is kept free unless configured otherwise, in bytes.
pub const DEFAULT_RESERVE_BYTES: u64 = 1 << 30;

const SNAPSHOTS: &str = "snapshots";
const STAGING: &str = "staging";
const MACHINES: &str = "machines";

/// The store of snapshots. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vault(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    rooms: Arc<Rooms>,
}

/// All snapshots of a vault.
#[derive(Debug)]
pub struct Listing {
    /// Those that can be used, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Those that cannot, and why: shown to the operator, never removed on their own.
    pub unreadable: Vec<(SnapshotId, ReadError)>,
}

// === impl Vault ===

impl Vault {
    /// Opens the vault in the directory `dir`, and makes one there if it is empty. Proves that the file system can
    /// clone files. Removes what interrupted publications and removals left.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_within(dir, Limits::default())
    }

    /// As [`Vault::open`], within `limits`.
    pub fn open_within(dir: &Path, limits: Limits) -> Result<Self, OpenError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |cause| OpenError::Io { what, path, cause }
        };
        let dir = dir.canonicalize().map_err(io("opening", dir))?;
        // First of all, so that nothing is written to a mere mount point whose image is not mounted.
        if !clones(&dir).map_err(io("testing", &dir))? {
            let mount = mount_of(&dir).ok().flatten();
            let file_system = mount.map_or_else(|| "unknown".to_owned(), |mount| mount.file_system);
            return Err(OpenError::CannotClone { path: dir, file_system });
        }
        version::check_or_write(&dir)?;
        for (name, mode) in [(SNAPSHOTS, 0o700), (STAGING, 0o700), (MACHINES, 0o711)] {
            let path = dir.join(name);
            make_dir(&path, mode).map_err(io("making", &path))?;
        }
        sync_dir(&dir).map_err(io("flushing", &dir))?;
        let vault = Self(Arc::new(Inner { dir, rooms: Rooms::new(limits) }));
        let staging = vault.staging_dir();
        for entry in std::fs::read_dir(&staging).map_err(io("listing", &staging))? {
            let path = entry.map_err(io("listing", &staging))?.path();
            tracing::info!(path = %path.display(), "removing what an interrupted publication or removal left");
            std::fs::remove_dir_all(&path).map_err(io("removing", &path))?;
        }
        vault.measure().map_err(io("measuring", vault.dir()))?;
        Ok(vault)
    }

    /// Opens the vault in `dir` to read snapshots, also while another process has it open: nothing in it is changed.
    pub fn open_beside(dir: &Path) -> Result<Self, OpenError> {
        let io = |cause| OpenError::Io { what: "opening", path: dir.to_owned(), cause };
        let dir = dir.canonicalize().map_err(io)?;
        version::check(&dir)?;
        Ok(Self(Arc::new(Inner { dir, rooms: Rooms::new(Limits::default()) })))
    }

    /// Starts writing a snapshot.
    pub fn stage(&self, id: SnapshotId) -> Result<Staging, StageError> {
        if self.snapshot_dir(&id).exists() {
            return Err(StageError::Exists(id));
        }
        let dir = self.staging_dir().join(id.as_str());
        match std::fs::create_dir(&dir) {
            Ok(()) => {
                let memory_written = Written::default();
                Ok(Staging { vault: self.clone(), id, dir, memory_written })
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StageError::Exists(id)),
            Err(error) => Err(StageError::io("making", &dir)(error)),
        }
    }

    /// The snapshot `id`.
    pub fn get(&self, id: &SnapshotId) -> Result<Snapshot, ReadError> {
        Snapshot::load(self.snapshot_dir(id), id)
    }

    /// All snapshots.
    pub fn list(&self) -> Result<Listing, ListError> {
        let path = self.snapshots_dir();
        let failed = |cause| ListError { path: path.clone(), cause };
        let mut listing = Listing { snapshots: Vec::new(), unreadable: Vec::new() };
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<SnapshotId>().ok()) else {
                tracing::warn!(?name, "the vault has something that is not a snapshot");
                continue;
            };
            match self.get(&id) {
                Ok(snapshot) => listing.snapshots.push(snapshot),
                // Removed since the directory was read.
                Err(ReadError::NotFound(_)) => {}
                Err(error) => listing.unreadable.push((id, error)),
            }
        }
        listing
            .snapshots
            .sort_by(|a, b| (a.manifest().created_at, a.id()).cmp(&(b.manifest().created_at, b.id())));
        listing.unreadable.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listing)
    }

    /// Removes the snapshot `id`. Files of it that are open stay usable until they are closed.
    pub fn remove(&self, id: &SnapshotId) -> Result<(), RemoveError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |cause| RemoveError::Io { path, cause }
        };
        let dir = self.snapshot_dir(id);
        // A staging of this id has the name without the suffix; ids have no dots.
        let aside = self.staging_dir().join(format!("{id}.removed"));
        match std::fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&aside)(error)),
            _ => {}
        }
        match std::fs::rename(&dir, &aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RemoveError::NotFound(id.clone()));
            }
            Err(error) => return Err(io(&dir)(error)),
        }
        interruption::step("remove.1");
        let snapshots = self.snapshots_dir();
        sync_dir(&snapshots).map_err(io(&snapshots))?;
        interruption::step("remove.2");
        std::fs::remove_dir_all(&aside).map_err(io(&aside))
    }

    /// Recomputes every hash of the snapshot `id`: reads all of it.
    pub fn verify(&self, id: &SnapshotId) -> Result<Verified, VerifyError> {
        self.verify_telling(id, &mut |_| {})
    }

    /// As [`Vault::verify`]; `told` is given the number of bytes whenever some were read. One that is removed meanwhile is
    /// [`ReadError::NotFound`].
    pub fn verify_telling(
        &self,
        id: &SnapshotId,
        told: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Verified, VerifyError> {
        let verified = self.get(id).map_err(VerifyError::from).and_then(|found| verify::verify(&found, told));
        match verified {
            Err(_) if !self.snapshot_dir(id).exists() => Err(ReadError::NotFound(id.clone()).into()),
            verified => verified,
        }
    }

    /// How much space there is.
    pub fn room(&self) -> io::Result<Room> {
        self.0.rooms.room(&self.0.dir)
    }

    /// Fails unless `bytes` can be written within the limits, beside what others were promised.
    pub fn require_room(&self, bytes: u64) -> Result<(), NoRoom> {
        self.claim_room(bytes).map(drop)
    }

    /// As [`Vault::require_room`], and promises them to the caller for as long as the claim is held. What is written
    /// meanwhile counts twice, so do not hold it for longer than the writing takes.
    pub fn claim_room(&self, bytes: u64) -> Result<Claim, NoRoom> {
        self.0.rooms.claim(&self.0.dir, bytes)
    }

    /// Measures what the vault takes up, where there is a budget and the vault has no file system of its own: call it
    /// now and then.
    pub fn measure(&self) -> io::Result<()> {
        self.0.rooms.measure(&self.0.dir)
    }

    /// Where working disks of machines are kept: on the vault's file system, so that they can be cloned to and from
    /// snapshots.
    pub fn machines_dir(&self) -> PathBuf {
        self.0.dir.join(MACHINES)
    }

    /// The vault's directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    pub(crate) fn snapshots_dir(&self) -> PathBuf {
        self.0.dir.join(SNAPSHOTS)
    }

    pub(crate) fn snapshot_dir(&self, id: &SnapshotId) -> PathBuf {
        self.snapshots_dir().join(id.as_str())
    }

    pub(crate) fn staging_dir(&self) -> PathBuf {
        self.0.dir.join(STAGING)
    }
}

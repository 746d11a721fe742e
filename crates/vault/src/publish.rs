//! From staged files to a snapshot.
//!
//! The order is what makes it safe. Everything is flushed, file by file, before the manifest is written; the manifest and
//! the directory are flushed before the directory is renamed into `snapshots/`; and the rename is flushed before anyone
//! is told. Power may fail at any point: before the rename there is a directory in `staging/`, which the next
//! [`crate::Vault::open`] removes; after it there is a whole snapshot.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::files::{seal, sync_dir, write_durably};
use crate::interruption;
use crate::manifest::{FORMAT, WRITTEN_BY};
use crate::snapshot::{DISK, DISK_SUMS, Image, MANIFEST, MEMORY, MEMORY_SUMS, STATE};
use crate::sums::{Sums, Written};
use crate::{
    DiskPart, Manifest, ManifestDraft, MemoryPart, PublishError, Snapshot, StageError, Staging, StatePart,
};

/// A step of a publication that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Memory, disk and state are durable, and so are the tables of hashes.
    ImagesDurable,
    /// The manifest is durable.
    ManifestDurable,
    /// The directory in `staging/` is durable.
    DirectoryDurable,
    /// The snapshot is in `snapshots/`.
    Renamed,
    /// And that is durable.
    RenameDurable,
}

#[cfg(test)]
impl Step {
    pub(crate) const ALL: [Self; 5] = [
        Self::ImagesDurable,
        Self::ManifestDurable,
        Self::DirectoryDurable,
        Self::Renamed,
        Self::RenameDurable,
    ];
}

/// A flushed image and the hash of its table.
struct Sealed {
    bytes: u64,
    sums_blake3: String,
}

pub(crate) fn publish(
    staging: &Staging,
    draft: ManifestDraft,
    parent: Option<&Snapshot>,
    after: &mut dyn FnMut(Step) -> io::Result<()>,
) -> Result<Snapshot, PublishError> {
    let begun = Instant::now();
    let dir = &staging.dir;
    let mut after = |step| after(step).map_err(StageError::io("writing", dir));
    let missing = |missing| PublishError::Incomplete { id: staging.id.clone(), missing };
    let has = |name| dir.join(name).exists();
    if !has(DISK) {
        return Err(missing("the disk"));
    }
    match (has(MEMORY), has(STATE)) {
        (true, false) => return Err(missing("the device state that goes with the memory")),
        (false, true) => return Err(missing("the memory that goes with the device state")),
        _ => {}
    }

    // Memory and disk at the same time: one waits for the disk while the other is hashed.
    let (memory, disk) = std::thread::scope(|scope| {
        let memory = has(MEMORY).then(|| {
            scope.spawn(|| {
                seal_image(
                    dir,
                    MEMORY,
                    MEMORY_SUMS,
                    parent.and_then(|parent| Some((parent, parent.memory()?))),
                    &staging.memory_written,
                )
            })
        });
        let disk = seal_image(
            dir,
            DISK,
            DISK_SUMS,
            parent.map(|parent| (parent, parent.disk())),
            &Written::default(),
        );
        let memory = memory.map(|thread| {
            thread.join().unwrap_or_else(|_| {
                Err(StageError::io("hashing", &dir.join(MEMORY))(io::Error::other("the thread panicked")))
            })
        });
        (memory.transpose(), disk)
    });
    let (memory, disk) = (memory?, disk?);
    let state = has(STATE).then(|| seal_state(&dir.join(STATE))).transpose()?;
    after(Step::ImagesDurable)?;
    interruption::step("publish.1");

    let manifest = Manifest {
        written_by: Some(WRITTEN_BY.to_owned()),
        format: FORMAT,
        id: staging.id.clone(),
        kind: draft.kind,
        created_at: draft.created_at,
        parent: parent.map(|parent| parent.id().clone()),
        machine: draft.machine,
        memory: memory.map(|sealed| MemoryPart { bytes: sealed.bytes, sums_blake3: sealed.sums_blake3 }),
        disk: DiskPart { bytes: disk.bytes, sums_blake3: disk.sums_blake3 },
        state,
        subject: draft.subject,
    };
    let path = dir.join(MANIFEST);
    let json = manifest.to_json().map_err(|error| StageError::io("writing", &path)(error.into()))?;
    write_durably(&path, &json).map_err(StageError::io("writing", &path))?;
    after(Step::ManifestDurable)?;
    interruption::step("publish.2");
    sync_dir(dir).map_err(StageError::io("flushing", dir))?;
    after(Step::DirectoryDurable)?;
    interruption::step("publish.3");

    let snapshots = staging.vault.snapshots_dir();
    let published = staging.vault.snapshot_dir(&staging.id);
    match renameat_with(CWD, dir, CWD, &published, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Err(StageError::Exists(staging.id.clone()).into()),
        Err(error) => return Err(StageError::io("publishing", dir)(error.into()).into()),
    }
    interruption::step("publish.4");
    let durable = after(Step::Renamed).and_then(|()| {
        sync_dir(&snapshots).map_err(StageError::io("flushing", &snapshots))?;
        after(Step::RenameDurable)
    });
    if let Err(error) = durable {
        // Not known to be durable, so it must not be seen; dropping the staging removes it from there.
        if let Err(error) = std::fs::rename(&published, dir) {
            tracing::error!(snapshot = %staging.id, %error, "could not take back a failed publication");
        }
        return Err(error.into());
    }
    interruption::step("publish.5");
    tracing::debug!(snapshot = %staging.id, ms = begun.elapsed().as_secs_f64() * 1e3, "published");
    Ok(Snapshot::new(published, manifest))
}

/// Flushes an image, and writes its table.
fn seal_image(
    dir: &Path,
    name: &str,
    sums_name: &str,
    parent: Option<(&Snapshot, Image<'_>)>,
    written: &Written,
) -> Result<Sealed, StageError> {
    let begun = Instant::now();
    let path = dir.join(name);
    let file = File::open(&path).map_err(StageError::io("opening", &path))?;
    seal(&file).map_err(StageError::io("flushing", &path))?;
    let flushed = begun.elapsed();

    // A parent that is gone or damaged does not vouch for anything: then all is hashed.
    let parent = parent.and_then(|(parent, image)| match parent.as_parent(image) {
        Ok(parent) => Some(parent),
        Err(error) => {
            tracing::warn!(%error, "the parent's hashes cannot be used");
            None
        }
    });
    let computed = match &parent {
        Some(parent) => Sums::derived(&file, parent, written),
        None => Sums::full(&file, written),
    };
    let computed = computed.map_err(StageError::io("hashing", &path))?;
    let table = computed.sums.to_bytes();
    let hashed = begun.elapsed() - flushed;
    let sums_path = dir.join(sums_name);
    write_durably(&sums_path, &table).map_err(StageError::io("writing", &sums_path))?;
    tracing::debug!(
        name,
        flush_ms = flushed.as_secs_f64() * 1e3,
        hash_ms = hashed.as_secs_f64() * 1e3,
        bytes_read = computed.bytes_read,
        "sealed"
    );
    Ok(Sealed { bytes: computed.sums.file_bytes, sums_blake3: blake3::hash(&table).to_hex().to_string() })
}

fn seal_state(path: &Path) -> Result<StatePart, StageError> {
    let sealed = File::open(path).and_then(|file| {
        seal(&file)?;
        let content = std::fs::read(path)?;
        Ok(StatePart { bytes: content.len() as u64, blake3: blake3::hash(&content).to_hex().to_string() })
    });
    sealed.map_err(StageError::io("flushing", path))
}

//! A snapshot that is being written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use torpor_types::SnapshotId;

use crate::publish::{self, Step};
use crate::snapshot::{DISK, MEMORY, STATE};
use crate::sums::Written;
use crate::{ManifestDraft, PublishError, Snapshot, StageError, Vault};

/// A snapshot that is being written; dropped unpublished, it is removed.
#[derive(Debug)]
pub struct Staging {
    pub(crate) vault: Vault,
    pub(crate) id: SnapshotId,
    pub(crate) dir: PathBuf,
    pub(crate) memory_written: Written,
}

// === impl Staging ===

impl Staging {
    /// The id it will have.
    pub fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// To be told what is written to the memory file, so that it need not be read again to be hashed. Whoever tells some of
    /// it has to tell all.
    pub fn memory_written(&self) -> &Written {
        &self.memory_written
    }

    /// Makes the memory file a clone of `base` (a file in the same vault) and opens it for reading and writing.
    pub fn clone_memory(&self, base: &File) -> Result<File, StageError> {
        self.clone_file(MEMORY, base)
    }

    /// Makes the memory file an empty, sparse file of `bytes` and opens it for reading and writing.
    pub fn memory_file(&self, bytes: u64) -> Result<File, StageError> {
        self.sparse_file(MEMORY, bytes)
    }

    /// Makes the disk file a clone of `base` (a file in the same vault) and opens it for reading and writing.
    pub fn clone_disk(&self, base: &File) -> Result<File, StageError> {
        self.clone_file(DISK, base)
    }

    /// Makes the disk file an empty, sparse file of `bytes` and opens it for reading and writing.
    pub fn disk_file(&self, bytes: u64) -> Result<File, StageError> {
        self.sparse_file(DISK, bytes)
    }

    /// Writes the device state.
    pub fn write_state(&self, state: &[u8]) -> Result<(), StageError> {
        let path = self.dir.join(STATE);
        let written = File::create_new(&path).and_then(|mut file| io::Write::write_all(&mut file, state));
        written.map_err(StageError::io("writing", &path))
    }

    /// Flushes everything, writes sums and manifest, and publishes: when this returns `Ok`, the snapshot is
    /// complete and durable. Nobody may write to the files any more from here on.
    ///
    /// A disk is a must; memory and state come together or not at all. `parent` is the snapshot that memory and disk
    /// were cloned from: what still shares its blocks is not hashed again.
    pub fn publish(self, draft: ManifestDraft, parent: Option<&Snapshot>) -> Result<Snapshot, PublishError> {
        self.publish_stepwise(draft, parent, &mut |_| Ok(()))
    }

    /// As `publish`, and tells `after` of every step done; an error from it ends the publication there.
    pub(crate) fn publish_stepwise(
        self,
        draft: ManifestDraft,
        parent: Option<&Snapshot>,
        after: &mut dyn FnMut(Step) -> io::Result<()>,
    ) -> Result<Snapshot, PublishError> {
        // Whatever fails, dropping `self` removes what was staged.
        publish::publish(&self, draft, parent, after)
    }

    fn clone_file(&self, name: &str, base: &File) -> Result<File, StageError> {
        let (path, file) = self.new_file(name)?;
        match rustix::fs::ioctl_ficlone(&file, base) {
            Ok(()) => Ok(file),
            Err(error) => Err(StageError::io("cloning into", &path)(error.into())),
        }
    }

    fn sparse_file(&self, name: &str, bytes: u64) -> Result<File, StageError> {
        let (path, file) = self.new_file(name)?;
        file.set_len(bytes).map_err(StageError::io("making", &path))?;
        Ok(file)
    }

    fn new_file(&self, name: &str) -> Result<(PathBuf, File), StageError> {
        let path = self.dir.join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(StageError::io("making", &path))?;
        Ok((path, file))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.dir) {
            Ok(()) => {}
            // Published: it has moved.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "could not remove what was staged; the next start will");
            }
        }
    }
}

// === impl StageError ===

impl StageError {
    /// Makes an error of what went wrong with `path`.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { what, path },
            _ => Self::Io { what, path, cause },
        }
    }
}

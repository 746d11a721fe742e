//! What the vault promises, on a real XFS file system in an image of its own.

mod faults;
mod places;
mod snapshots;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use torpor_types::{Accelerator, Shape, SnapshotId};

use crate::place::{self, PlaceOptions};
use crate::{Kind, Limits, MachineFacts, ManifestDraft, Snapshot, Staging, Vault};

/// A data directory that is unmounted and removed, however the test ends.
pub(super) struct DataDir(Option<tempfile::TempDir>);

impl DataDir {
    pub(super) fn new() -> Self {
        let dir = match std::env::var_os("TORPOR_TEST_DATA_DIR") {
            Some(parent) => tempfile::tempdir_in(parent),
            None => tempfile::tempdir(),
        };
        Self(Some(dir.unwrap()))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }

    /// A vault in a new image of `image_mib`.
    pub(super) fn vault(&self, image_mib: u64) -> Vault {
        Vault::open_within(&self.prepare(image_mib), UNLIMITED).unwrap()
    }

    pub(super) fn prepare(&self, image_mib: u64) -> PathBuf {
        place::prepare_image(self.path(), &PlaceOptions { image_bytes: Some(image_mib << 20) })
            .unwrap()
            .vault_dir
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let unmounted = place::unmount(self.path());
        if let (Err(error), Some(dir)) = (&unmounted, self.0.take()) {
            // Removing would reach into the mounted file system; keep it for the operator.
            eprintln!("{error}; left {}", dir.keep().display());
        }
    }
}

/// All there is may be used.
pub(super) const UNLIMITED: Limits = Limits { reserve_bytes: 0, budget_bytes: None };

pub(super) fn id(text: &str) -> SnapshotId {
    text.parse().unwrap()
}

pub(super) fn draft() -> ManifestDraft {
    ManifestDraft {
        kind: Kind::Pause,
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        machine: MachineFacts {
            shape: Shape { vcpus: 1, memory_mib: 8, disk_mib: 8 },
            accelerator: Accelerator::Tcg,
            machine_type: "microvm".to_owned(),
            cpu_model: "max".to_owned(),
            qemu_version: "10.0.2".to_owned(),
            kernel_blake3: String::new(),
            agent_version: "0".to_owned(),
            tsc_khz: 1,
        },
        subject: serde_json::json!({"sandbox": "i1"}),
    }
}

pub(super) const FILE_BYTES: u64 = 8 << 20;

/// A complete staging, with data and holes.
pub(super) fn staged(vault: &Vault, name: &str) -> Staging {
    let staging = vault.stage(id(name)).unwrap();
    fill(&staging.memory_file(FILE_BYTES).unwrap(), 1);
    fill(&staging.disk_file(FILE_BYTES).unwrap(), 2);
    staging.write_state(b"state").unwrap();
    staging
}

/// A staging grown out of `parent`, with a little changed.
pub(super) fn grown(vault: &Vault, name: &str, parent: &Snapshot) -> Staging {
    let staging = vault.stage(id(name)).unwrap();
    let memory = staging.clone_memory(&parent.open_memory().unwrap()).unwrap();
    memory.write_all_at(&[7; 5000], 3 << 20).unwrap();
    let disk = staging.clone_disk(&parent.open_disk().unwrap()).unwrap();
    disk.write_all_at(&[8; 5000], 5 << 20).unwrap();
    staging.write_state(b"another state").unwrap();
    staging
}

fn fill(file: &File, byte: u8) {
    file.write_all_at(&vec![byte; 2 << 20], 1 << 20).unwrap();
    file.write_all_at(&[byte; 100], FILE_BYTES - 100).unwrap();
}

/// Names in a directory.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

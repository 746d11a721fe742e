//! `record.json`: what a machine is, for the server that comes after this one.
//!
//! ```text
//! { "version": 1,
//!   "id": "m…",              the machine
//!   "shape": {…},            its size
//!   "pid": 4711,             its process …
//!   "start_ticks": 99,       … and when that started, in clock ticks since the host did
//!   "uid": 1900000000,       who it runs as
//!   "ram": { "address", "len" },   where private guest RAM lies in the process; or
//!          { "file": "ram" },      the file beside its disk that is its RAM
//!   "note": {…} | null }     its owner's words; null: it carries nothing and can go
//! ```
//!
//! It is written aside and renamed into place. A new version reads all older ones; a version that is not known is an
//! error, and its machine is destroyed like any other that cannot be adopted: its sandbox has its last pause.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use torpor_types::{MachineId, Shape};

use crate::memory::RamRecord;

const FILE: &str = "record.json";
const VERSION: u32 = 1;

/// The record of one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: MachineId,
    pub(crate) shape: Shape,
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
    pub(crate) uid: u32,
    pub(crate) ram: RamRecord,
    pub(crate) note: Option<serde_json::Value>,
}

// === impl Record ===

impl Record {
    pub(crate) fn new(
        id: MachineId,
        shape: Shape,
        pid: u32,
        start_ticks: u64,
        uid: u32,
        ram: RamRecord,
    ) -> Self {
        Self { version: VERSION, id, shape, pid, start_ticks, uid, ram, note: None }
    }

    /// Reads the record in a machine's directory.
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(&fs::read(dir.join(FILE))?)?;
        if record.version != VERSION {
            return Err(io::Error::other(format!(
                "its version is {}, this server knows {VERSION}",
                record.version
            )));
        }
        Ok(record)
    }

    /// Writes the record into a machine's directory, replacing the one before.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        replace(&dir.join(FILE), &serde_json::to_vec_pretty(self)?)
    }
}

/// Writes a file aside and renames it into place: readers see the old content or the new, never a part.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    fs::write(&aside, content)?;
    fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::GuestRam;

    fn record() -> Record {
        let shape = Shape { vcpus: 1, memory_mib: 512, disk_mib: 1024 };
        Record::new(
            MachineId::random(),
            shape,
            7,
            9,
            1_900_000_000,
            RamRecord::Private(GuestRam { address: 4096, len: 512 << 20 }),
        )
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = record();
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), record);
        record.note = Some(serde_json::json!({ "sandbox": "i1" }));
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), record);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_record_says_of_every_machine_which_kind_of_memory_it_has() {
        let dir = tempfile::tempdir().unwrap();
        for (ram, written) in [
            (record().ram, serde_json::json!({ "address": 4096, "len": 512 << 20 })),
            (RamRecord::Shared { file: "ram".to_owned() }, serde_json::json!({ "file": "ram" })),
        ] {
            Record { ram: ram.clone(), ..record() }.write(dir.path()).unwrap();
            let text = fs::read(dir.path().join(FILE)).unwrap();
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["ram"], written);
            assert_eq!(Record::read(dir.path()).unwrap().ram, ram);
        }
    }

    #[test]
    fn a_record_of_a_later_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Record { version: VERSION + 1, ..record() }.write(dir.path()).unwrap();
        let error = Record::read(dir.path()).unwrap_err();
        assert!(error.to_string().contains("version"), "{error}");
    }
}

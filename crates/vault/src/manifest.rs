//! What a snapshot is: `manifest.json`.
//!
//! ```text
//! {
//!   "format":     {"major": 1, "minor": 1}
//!   "written_by": the Torpor that wrote it, "0.1.0"; since 1.1
//!   "id":         the snapshot's id; the name of its directory, too
//!   "kind":       "template" | "pause"
//!   "created_at": when the machine was stopped, RFC 3339
//!   "parent":     id of the snapshot it grew out of, or null
//!   "machine":    {shape, accelerator, machine_type, cpu_model, qemu_version, kernel_blake3, agent_version, tsc_khz}
//!   "memory":     {"bytes", "sums_blake3"} or null       memory ── hashed by ── memory.sums ── hashed here
//!   "disk":       {"bytes", "sums_blake3"}               disk   ── hashed by ── disk.sums   ── hashed here
//!   "state":      {"bytes", "blake3"} or null            state  ── hashed here
//!   "subject":    the owner's record, any JSON
//! }
//! ```
//!
//! So the manifest vouches for every byte of the snapshot.
//!
//! The rule for old readers and new data: whatever an older Torpor would misunderstand raises `major`, and an older Torpor
//! refuses the manifest; what it may overlook is added as an optional field and raises `minor`. Unknown fields
//! are ignored, unknown values (of `kind`, say) are not.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use torpor_types::{Accelerator, Shape, SnapshotId};

/// Version of a manifest's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// Raised when an old reader would misunderstand a new manifest.
    pub major: u32,
    /// Raised when fields are added that an old reader may ignore.
    pub minor: u32,
}

/// What a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A build of a template.
    Template,
    /// Where a sandbox was paused, or a snapshot taken of it while it ran.
    Pause,
}

/// What the machine was: has to match for memory to be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// Its size.
    pub shape: Shape,
    /// What ran it.
    pub accelerator: Accelerator,
    /// QEMU's machine type.
    pub machine_type: String,
    /// QEMU's CPU model.
    pub cpu_model: String,
    /// QEMU's version.
    pub qemu_version: String,
    /// BLAKE3 of the guest's kernel image.
    pub kernel_blake3: String,
    /// Version of the agent in the guest.
    pub agent_version: String,
    /// Frequency of the time stamp counter the guest saw, in kHz; 0 where it does not matter.
    pub tsc_khz: u64,
}

/// What the owner of a [`crate::Staging`] says about the snapshot; the vault adds sizes and hashes.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifestDraft {
    /// What the snapshot is for.
    pub kind: Kind,
    /// When the machine was stopped.
    pub created_at: Timestamp,
    /// What the machine was.
    pub machine: MachineFacts,
    /// The owner's record (of a sandbox or a template), so that the database can be rebuilt from manifests.
    pub subject: serde_json::Value,
}

/// The memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of `memory.sums`.
    pub sums_blake3: String,
}

/// The disk file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPart {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of `disk.sums`.
    pub sums_blake3: String,
}

/// The device state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePart {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of `state`.
    pub blake3: String,
}

/// What a snapshot is. Memory and state are both there or both missing (a *filesystem-only* snapshot, which boots).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub format: Format,
    /// The version of the Torpor that wrote it; for messages alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_by: Option<String>,
    /// The snapshot's own id.
    pub id: SnapshotId,
    /// What it is for.
    pub kind: Kind,
    /// When the machine was stopped.
    pub created_at: Timestamp,
    /// The snapshot that the machine was resumed from; it may be gone by now.
    pub parent: Option<SnapshotId>,
    /// What the machine was.
    pub machine: MachineFacts,
    /// The memory file.
    pub memory: Option<MemoryPart>,
    /// The disk file.
    pub disk: DiskPart,
    /// The device state.
    pub state: Option<StatePart>,
    /// The owner's record.
    pub subject: serde_json::Value,
}

/// A manifest cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Written by a newer Torpor.
    #[error(
        "the manifest has format {found_major}.{found_minor}, this Torpor understands {known_major}.x. The snapshot is left \
         as it is: to use it, upgrade Torpor to {} or newer", .written_by.as_deref().unwrap_or("the version that wrote it")
    )]
    UnknownFormat {
        /// The Torpor that wrote it, if it says so.
        written_by: Option<String>,
        /// Major version found.
        found_major: u32,
        /// Minor version found.
        found_minor: u32,
        /// Major version understood.
        known_major: u32,
    },
    /// Not a manifest.
    #[error("the manifest is damaged: {0}")]
    Damaged(String),
}

/// Just enough of a manifest to know whether the rest can be understood.
#[derive(Deserialize)]
struct Header {
    format: Format,
    #[serde(default)]
    written_by: serde_json::Value,
}

/// The version written by this Torpor.
pub(crate) const FORMAT: Format = Format { major: 1, minor: 1 };

/// The Torpor that writes.
pub(crate) const WRITTEN_BY: &str = env!("CARGO_PKG_VERSION");

// === impl Manifest ===

impl Manifest {
    /// Reads a manifest.
    pub fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |error: serde_json::Error| ManifestError::Damaged(error.to_string());
        let Header { format, written_by } = serde_json::from_slice(json).map_err(damaged)?;
        if format.major != FORMAT.major {
            return Err(ManifestError::UnknownFormat {
                written_by: written_by.as_str().map(|version| version.chars().take(40).collect()),
                found_major: format.major,
                found_minor: format.minor,
                known_major: FORMAT.major,
            });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(damaged)?;
        if manifest.memory.is_some() != manifest.state.is_some() {
            return Err(ManifestError::Damaged("of memory and state there is only one".to_owned()));
        }
        Ok(manifest)
    }

    /// Whether memory was left out: such a snapshot is booted, not resumed.
    pub fn is_filesystem_only(&self) -> bool {
        self.memory.is_none()
    }

    pub(crate) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            written_by: Some("0.1.0".to_owned()),
            id: "s1".parse().unwrap(),
            kind: Kind::Pause,
            created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            parent: Some("s0".parse().unwrap()),
            machine: MachineFacts {
                shape: Shape { vcpus: 1, memory_mib: 1024, disk_mib: 4096 },
                accelerator: Accelerator::Tcg,
                machine_type: "microvm".to_owned(),
                cpu_model: "max".to_owned(),
                qemu_version: "10.0.2".to_owned(),
                kernel_blake3: "aa".repeat(32),
                agent_version: "0.1.0".to_owned(),
                tsc_khz: 2_000_000,
            },
            memory: Some(MemoryPart { bytes: 1 << 30, sums_blake3: "bb".repeat(32) }),
            disk: DiskPart { bytes: 4 << 30, sums_blake3: "cc".repeat(32) },
            state: Some(StatePart { bytes: 100_000, blake3: "dd".repeat(32) }),
            subject: serde_json::json!({"sandbox": "i1"}),
        }
    }

    #[test]
    fn a_manifest_is_written_as_documented() {
        insta::assert_snapshot!(String::from_utf8(manifest().to_json().unwrap()).unwrap());
    }

    #[test]
    fn a_manifest_is_read_back_as_it_was_written() {
        assert_eq!(Manifest::from_json(&manifest().to_json().unwrap()).unwrap(), manifest());
    }

    #[test]
    fn a_newer_minor_format_is_read_and_a_newer_major_one_is_refused_with_the_way_out() {
        let mut json = serde_json::to_value(manifest()).unwrap();
        json["format"]["minor"] = 7.into();
        json["colour"] = "blue".into();
        assert_eq!(Manifest::from_json(json.to_string().as_bytes()).unwrap().id, manifest().id);
        // Nothing but the format has to be understandable for a clear refusal.
        let refused = [
            r#"{"format": {"major": 2, "minor": 1}, "id": {}}"#,
            r#"{"format": {"major": 2, "minor": 1}, "written_by": "3.4.5"}"#,
            r#"{"format": {"major": 2, "minor": 1}, "written_by": [7]}"#,
        ];
        let errors = refused.map(|json| Manifest::from_json(json.as_bytes()).unwrap_err());
        for error in &errors {
            assert!(matches!(error, ManifestError::UnknownFormat { found_major: 2, found_minor: 1, .. }));
        }
        insta::assert_snapshot!(errors.map(|error| error.to_string()).join("\n"));
    }

    /// `fixtures/manifests/<format>-<what>.json` were written by the Torpor of that format. They are never changed, and
    /// every later Torpor of the same major format reads them.
    #[test]
    fn manifests_of_every_earlier_format_are_read_as_they_were_meant() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/manifests");
        let mut names: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let Format { major, minor } = FORMAT;
        assert!(
            names.contains(&format!("{major}.{minor}-pause.json")),
            "keep one of the present format, too"
        );
        let described = names.iter().map(|name| {
            let manifest = Manifest::from_json(&std::fs::read(dir.join(name)).unwrap()).unwrap();
            let Manifest { format, written_by, id, kind, parent, machine, memory, disk, state, .. } = &manifest;
            let machine = format!("{} {} {}", machine.accelerator, machine.qemu_version, machine.kernel_blake3);
            format!(
                "{name}: {format:?} by {written_by:?}, {id} {kind:?} of {parent:?}\n  {machine}\n  {memory:?}\n  {disk:?}\n  {state:?}\n"
            )
        });
        insta::assert_snapshot!(described.collect::<String>());
    }

    #[test]
    fn the_documentation_names_the_present_format() {
        let page = include_str!("../../../docs/compatibility.md");
        assert!(page.contains(&format!("the Torpor that wrote it | {}.{} |", FORMAT.major, FORMAT.minor)));
    }

    #[test]
    fn a_manifest_with_something_wrong_in_it_is_damaged() {
        for (field, value) in [
            ("kind", serde_json::json!("other")),
            ("state", serde_json::Value::Null),
            ("disk", serde_json::Value::Null),
            ("id", serde_json::json!("../x")),
        ] {
            let mut json = serde_json::to_value(manifest()).unwrap();
            json[field] = value;
            let error = Manifest::from_json(json.to_string().as_bytes()).unwrap_err();
            assert!(matches!(error, ManifestError::Damaged(_)), "{field}: {error}");
        }
        assert!(matches!(Manifest::from_json(b"{"), Err(ManifestError::Damaged(_))));
    }
}

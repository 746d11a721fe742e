//! `torpor vault`: whether everything in it is still what was saved, and the database from what is in it.

use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use torpor_control::lifecycle::{Made, MadeKind, RebuildError, Rebuilt, rebuild_index};
use torpor_control::registry::{Registry, RegistryError};
use torpor_types::SnapshotId;
use torpor_vault::place::{self, PlaceOptions};
use torpor_vault::{ReadError, Snapshot, Vault, VerifyError};

use crate::client::{ClientError, say, say_json, table};
use crate::layout::DataDir;
use crate::lock::{DataDirLock, LockError};
use crate::progress::{Console, Step};
use crate::settings::{Settings, SettingsError};
use crate::setup::size;

/// Look after the store of snapshots of the node whose data directory this is
#[derive(Debug, clap::Args)]
pub(crate) struct VaultCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Read every byte of every snapshot and compare it with what was saved; works beside a running server
    ///
    /// Exits with 1 if a snapshot is damaged.
    Verify {
        /// Ids of snapshots [default: all there are]
        ids: Vec<SnapshotId>,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Make the database's rows of templates, paused sandboxes and snapshots again from what is in the vault
    ///
    /// For a database that is lost or damaged (move torpor.db* away then). No server may run. Rows that exist stay as they
    /// are. API keys cannot be made again: `torpor key create` makes new ones.
    RebuildIndex {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// What became of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    id: SnapshotId,
    /// Whose it is.
    of: String,
    /// Bytes that were read and hashed; holes are not.
    bytes_read: u64,
    outcome: Outcome,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Damaged,
    /// Removed while it was read, or before: no damage.
    Gone,
}

/// The vault could not be looked after.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// Somebody else has the data directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No vault is mounted.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    /// No vault.
    #[error(transparent)]
    Open(#[from] torpor_vault::OpenError),
    /// The vault cannot be listed.
    #[error(transparent)]
    List(#[from] torpor_vault::ListError),
    /// The settings cannot be read.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The database cannot be opened.
    #[error("{0}. If it is damaged, move torpor.db, torpor.db-wal and torpor.db-shm away and run this again")]
    Registry(#[from] RegistryError),
    /// Not all rows could be made.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// The reading thread ended early.
    #[error("verifying ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
    /// Nothing can be printed.
    #[error(transparent)]
    Print(#[from] ClientError),
}

// === impl VaultCommand ===

impl VaultCommand {
    /// Does what was asked to the vault of `data_dir`.
    pub(crate) async fn run(self, data_dir: &DataDir) -> Result<ExitCode, VaultError> {
        match self.action {
            Action::Verify { ids, json } => verify(data_dir, ids, json).await,
            Action::RebuildIndex { json } => rebuild(data_dir, json).await,
        }
    }
}

async fn verify(data_dir: &DataDir, ids: Vec<SnapshotId>, json: bool) -> Result<ExitCode, VaultError> {
    let vault = open_beside(data_dir)?;
    let step = Arc::new(Console::new().step("verify"));
    let telling = Arc::clone(&step);
    let verdicts = tokio::task::spawn_blocking(move || look_at(&vault, &ids, &telling)).await??;
    let count = |outcome| verdicts.iter().filter(|verdict| verdict.outcome == outcome).count();
    let damaged = count(Outcome::Damaged);
    let read = size(verdicts.iter().map(|verdict| verdict.bytes_read).sum());
    match (Arc::into_inner(step), damaged) {
        (Some(step), 0) => {
            let whole = match count(Outcome::Ok) {
                1 => "1 snapshot is as it was saved".to_owned(),
                count => format!("{count} snapshots are as they were saved"),
            };
            step.ok(&format!("{whole}; {read} read"));
        }
        (Some(step), _) => step.failed(),
        (None, _) => {}
    }
    if json {
        say_json(&verdicts)?
    } else {
        say(&show(&verdicts))?
    }
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The vault, to be read. Where no server runs, its image may have to be mounted first.
fn open_beside(data_dir: &DataDir) -> Result<Vault, VaultError> {
    match DataDirLock::take(data_dir) {
        Ok(_lock) => drop(place::prepare(data_dir.root(), &PlaceOptions::default())?),
        Err(LockError::Held { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Vault::open_beside(&data_dir.vault())?)
}

fn look_at(vault: &Vault, ids: &[SnapshotId], step: &Step) -> Result<Vec<Verdict>, torpor_vault::ListError> {
    let listing = vault.list()?;
    let wanted = |id: &SnapshotId| ids.is_empty() || ids.contains(id);
    let mut verdicts: Vec<Verdict> = Vec::new();
    for (id, error) in listing.unreadable.into_iter().filter(|(id, _)| wanted(id)) {
        verdicts.push(Verdict::damaged(id, String::new(), &error));
    }
    let snapshots: Vec<Snapshot> = listing.snapshots.into_iter().filter(|found| wanted(found.id())).collect();
    for id in ids {
        if !snapshots.iter().any(|found| found.id() == id) && !verdicts.iter().any(|known| known.id == *id) {
            let outcome = Outcome::Gone;
            verdicts.push(Verdict { id: id.clone(), of: String::new(), bytes_read: 0, outcome, why: None });
        }
    }
    // What is shared is read for each that has it. One whose size is not known (it is gone by now) takes no time.
    let bytes = |snapshot: &Snapshot| snapshot.allocated_bytes().unwrap_or_default();
    let all_bytes: u64 = snapshots.iter().map(bytes).sum();
    let mut done_bytes = 0;
    for snapshot in &snapshots {
        let (id, of) = (snapshot.id().clone(), owner(&snapshot.manifest().subject));
        let mut read_bytes = 0;
        let verified = vault.verify_telling(&id, &mut |bytes| {
            read_bytes += bytes;
            step.done((done_bytes + read_bytes) as f64 / all_bytes.max(1) as f64);
        });
        done_bytes += bytes(snapshot);
        verdicts.push(match verified {
            Ok(verified) => {
                Verdict { id, of, bytes_read: verified.bytes_read, outcome: Outcome::Ok, why: None }
            }
            Err(VerifyError::Read(ReadError::NotFound(_))) => {
                Verdict { id, of, bytes_read: read_bytes, outcome: Outcome::Gone, why: None }
            }
            Err(error) => Verdict { bytes_read: read_bytes, ..Verdict::damaged(id, of, &error) },
        });
    }
    Ok(verdicts)
}

/// Whose a snapshot is, by its manifest's subject.
fn owner(subject: &Value) -> String {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named = |kind: &str, key: &str| text(&subject[kind][key]).map(|name| format!("{kind} {name}"));
    named("template", "name")
        .or_else(|| named("sandbox", "id"))
        .or_else(|| named("snapshot", "name"))
        .or_else(|| named("snapshot", "id"))
        .or_else(|| text(&subject["fork"]["of"]).map(|id| format!("fork of {id}")))
        .unwrap_or_default()
}

fn show(verdicts: &[Verdict]) -> String {
    let row = |verdict: &Verdict| {
        let outcome = match verdict.outcome {
            Outcome::Ok => "ok",
            Outcome::Damaged => "DAMAGED",
            Outcome::Gone => "gone",
        };
        [
            verdict.id.to_string(),
            verdict.of.clone(),
            size(verdict.bytes_read),
            outcome.to_owned(),
            verdict.why.clone().unwrap_or_default(),
        ]
    };
    table(["SNAPSHOT", "OF", "READ", "RESULT", "WHY"], &verdicts.iter().map(row).collect::<Vec<_>>())
}

async fn rebuild(data_dir: &DataDir, json: bool) -> Result<ExitCode, VaultError> {
    let _lock = DataDirLock::take(data_dir)?;
    let place = place::prepare(data_dir.root(), &PlaceOptions::default())?;
    let settings = Settings::default().with_file(data_dir)?;
    let vault = Vault::open_within(&place.vault_dir, settings.vault_limits())?;
    let registry = Registry::open(data_dir.root()).await?;
    let rebuilt = rebuild_index(&registry, &vault).await?;
    if json {
        say_json(&rebuilt)?
    } else {
        say(&show_rebuilt(&rebuilt))?
    }
    Ok(ExitCode::SUCCESS)
}

fn show_rebuilt(rebuilt: &Rebuilt) -> String {
    let row = |made: &Made| {
        let kind = match made.kind {
            MadeKind::Template => "template",
            MadeKind::Sandbox => "sandbox",
            MadeKind::Snapshot => "snapshot",
        };
        [kind.to_owned(), made.id.clone(), made.name.clone(), made.snapshot.to_string()]
    };
    let rows: Vec<_> = rebuilt.made.iter().map(row).collect();
    let made = (!rows.is_empty()).then(|| table(["MADE", "ID", "NAME", "FROM SNAPSHOT"], &rows));
    let unreadable =
        rebuilt.unreadable.iter().map(|found| format!("left alone: {}: {}", found.id, found.why));
    let sum = format!(
        "{} made; {} known already; {} have no owner that has a row; {} cannot be read",
        rebuilt.made.len(),
        rebuilt.known,
        rebuilt.without_owner.len(),
        rebuilt.unreadable.len()
    );
    made.into_iter().chain(unreadable).chain([sum]).collect::<Vec<_>>().join("\n")
}

// === impl Verdict ===

impl Verdict {
    fn damaged(id: SnapshotId, of: String, error: &dyn std::error::Error) -> Self {
        Self { id, of, bytes_read: 0, outcome: Outcome::Damaged, why: Some(error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(text: &str) -> SnapshotId {
        text.parse().unwrap()
    }

    #[test]
    fn the_table_says_of_each_snapshot_whose_it_is_and_what_is_wrong_with_it() {
        let verdict = |name: &str, subject, outcome, why: Option<&str>| Verdict {
            id: id(name),
            of: owner(&subject),
            bytes_read: 300 << 20,
            outcome,
            why: why.map(str::to_owned),
        };
        let damage = "memory differs from what was published, first in the MiB that starts at byte 1048576";
        let verdicts = [
            verdict("s1", json!({"template": {"name": "base"}}), Outcome::Ok, None),
            verdict("s2", json!({"sandbox": {"id": "iabc"}}), Outcome::Damaged, Some(damage)),
            verdict("s3", json!({"snapshot": {"id": "tabc", "name": null}}), Outcome::Ok, None),
            verdict("s4", json!({"fork": {"of": "iabc"}}), Outcome::Gone, None),
        ];
        insta::assert_snapshot!(show(&verdicts));
        insta::assert_snapshot!(serde_json::to_string(&verdicts[1]).unwrap());
    }

    #[test]
    fn what_was_rebuilt_is_told_row_by_row() {
        let made = |kind, id_text: &str, name: &str| Made {
            kind,
            id: id_text.to_owned(),
            name: name.to_owned(),
            snapshot: id("s1"),
        };
        let rebuilt = Rebuilt {
            made: vec![
                made(MadeKind::Template, "tbase", "base"),
                made(MadeKind::Sandbox, "iabc", "base"),
                made(MadeKind::Snapshot, "tabc", ""),
            ],
            known: 2,
            ..Rebuilt::default()
        };
        insta::assert_snapshot!(show_rebuilt(&rebuilt));
        assert!(show_rebuilt(&Rebuilt::default()).starts_with("0 made"));
    }
}

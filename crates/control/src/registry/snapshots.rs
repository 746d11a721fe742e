//! Snapshots that users took of their sandboxes: persistent starting points, used like templates.
//!
//! A snapshot has an id of its own (a template id on the wire) and, if its user gave one, a name and a tag, unique
//! in the team. Taking another snapshot under the same name keeps the id and replaces what it points at.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use torpor_types::{SandboxId, SnapshotId, TeamId, TemplateId};

use super::keys::parse;
use super::{Registry, RegistryError, SandboxRecord};

/// A snapshot as its user knows it; also the `snapshot` of its manifest's subject, from which a lost row is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// Its id.
    pub id: TemplateId,
    /// Whose it is.
    pub team_id: TeamId,
    /// Its name, without the team; `None` if it has none.
    pub name: Option<String>,
    /// Tells several of one name apart.
    pub tag: String,
    /// Where it is in the vault; `None` only in a manifest, which is that.
    pub snapshot_id: Option<SnapshotId>,
    /// The sandbox it was taken of.
    pub source: SandboxId,
    /// What that sandbox was.
    pub record: SandboxRecord,
    /// When it was taken.
    pub created_at: Timestamp,
}

// === impl Registry ===

impl Registry {
    /// Records a snapshot under its id, in place of what was there.
    pub async fn put_snapshot(&self, row: &SnapshotRow) -> Result<(), RegistryError> {
        let record = serde_json::to_string(&row.record).map_err(|e| corrupt(row.id.as_str(), e))?;
        sqlx::query(
            "INSERT INTO snapshots (id, team_id, name, tag, snapshot_id, source, record, created_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET snapshot_id = excluded.snapshot_id, source = excluded.source,
                 record = excluded.record, created_at = excluded.created_at",
        )
        .bind(row.id.as_str())
        .bind(row.team_id.as_str())
        .bind(&row.name)
        .bind(&row.tag)
        .bind(row.snapshot_id.as_ref().map(SnapshotId::as_str))
        .bind(row.source.as_str())
        .bind(record)
        .bind(row.created_at.to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// All snapshots of all teams, the newest first.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotRow>, RegistryError> {
        let rows = sqlx::query("SELECT * FROM snapshots ORDER BY created_at DESC, id DESC")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(snapshot_row).collect()
    }

    /// The team's snapshot of that id.
    pub async fn snapshot(&self, team: &TeamId, id: &str) -> Result<Option<SnapshotRow>, RegistryError> {
        let row = sqlx::query("SELECT * FROM snapshots WHERE team_id = ? AND id = ?")
            .bind(team.as_str())
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(snapshot_row).transpose()
    }

    /// The team's snapshot of that name and tag.
    pub async fn snapshot_named(
        &self,
        team: &TeamId,
        name: &str,
        tag: &str,
    ) -> Result<Option<SnapshotRow>, RegistryError> {
        let row = sqlx::query("SELECT * FROM snapshots WHERE team_id = ? AND name = ? AND tag = ?")
            .bind(team.as_str())
            .bind(name)
            .bind(tag)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(snapshot_row).transpose()
    }

    /// Forgets a snapshot.
    pub async fn delete_snapshot(&self, id: &TemplateId) -> Result<(), RegistryError> {
        sqlx::query("DELETE FROM snapshots WHERE id = ?").bind(id.as_str()).execute(&self.pool).await?;
        Ok(())
    }
}

fn corrupt(id: &str, why: impl std::fmt::Display) -> RegistryError {
    RegistryError::Corrupt { table: "snapshots", id: id.to_owned(), why: why.to_string() }
}

fn snapshot_row(row: &SqliteRow) -> Result<SnapshotRow, RegistryError> {
    let id: String = row.get("id");
    Ok(SnapshotRow {
        team_id: parse("snapshots", &id, row.get("team_id"))?,
        name: row.get("name"),
        tag: row.get("tag"),
        snapshot_id: Some(parse("snapshots", &id, row.get("snapshot_id"))?),
        source: parse("snapshots", &id, row.get("source"))?,
        record: serde_json::from_str(row.get("record")).map_err(|e| corrupt(&id, e))?,
        created_at: parse("snapshots", &id, row.get("created_at"))?,
        id: parse("snapshots", &id, &id)?,
    })
}

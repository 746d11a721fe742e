//! Teams: keys and sandboxes belong to one, and it has limits.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use torpor_types::TeamId;

use super::keys::parse;
use super::{Registry, RegistryError};

/// A team.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TeamRow {
    /// Its id.
    pub id: TeamId,
    /// Its name, unique on the node.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it may have.
    pub limits: TeamLimits,
}

/// What a team may have, as far as it differs from what the server's settings say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TeamLimits {
    /// Sandboxes that run at the same time; `None`: as the server's settings say.
    pub max_running: Option<u32>,
    /// Longest time a sandbox may run without a resume, in hours; `None`: as the server's settings say.
    pub max_timeout_hours: Option<u32>,
    /// Days for which a sandbox is kept paused, 0 for ever; `None`: as the server's settings say.
    pub retention_days: Option<u32>,
    /// Days for which a snapshot is kept, 0 for ever; `None`: as the server's settings say.
    pub snapshot_retention_days: Option<u32>,
}

// === impl Registry ===

impl Registry {
    /// Records a new team without limits of its own. `None` if there is one of that name.
    pub async fn create_team(&self, name: &str) -> Result<Option<TeamRow>, RegistryError> {
        let done = sqlx::query(
            "INSERT INTO teams (id, name, created_at) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING",
        )
        .bind(TeamId::random().as_str())
        .bind(name)
        .bind(Timestamp::now().to_string())
        .execute(&self.pool)
        .await?;
        match done.rows_affected() {
            0 => Ok(None),
            _ => self.team_by_name(name).await,
        }
    }

    /// The team of that name, made if there is none.
    pub async fn team_named(&self, name: &str) -> Result<TeamRow, RegistryError> {
        loop {
            if let Some(team) = self.team_by_name(name).await? {
                return Ok(team);
            }
            // `None` if another process made it just now.
            if let Some(team) = self.create_team(name).await? {
                return Ok(team);
            }
        }
    }

    /// `id` if there is a team of that id, else the team named `default`, made if there is none.
    pub async fn team_or_default(&self, id: &TeamId, default: &str) -> Result<TeamId, RegistryError> {
        match self.team(id).await? {
            Some(team) => Ok(team.id),
            None => Ok(self.team_named(default).await?.id),
        }
    }

    /// The team of that id.
    pub async fn team(&self, id: &TeamId) -> Result<Option<TeamRow>, RegistryError> {
        let row = sqlx::query("SELECT * FROM teams WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(team_row).transpose()
    }

    /// The team of that name.
    pub async fn team_by_name(&self, name: &str) -> Result<Option<TeamRow>, RegistryError> {
        let row =
            sqlx::query("SELECT * FROM teams WHERE name = ?").bind(name).fetch_optional(&self.pool).await?;
        row.as_ref().map(team_row).transpose()
    }

    /// All teams, the oldest first.
    pub async fn teams(&self) -> Result<Vec<TeamRow>, RegistryError> {
        let rows = sqlx::query("SELECT * FROM teams ORDER BY created_at, id").fetch_all(&self.pool).await?;
        rows.iter().map(team_row).collect()
    }

    /// Replaces a team's limits; they hold from the next request on. False if there is no such team.
    pub async fn set_team_limits(&self, id: &TeamId, limits: TeamLimits) -> Result<bool, RegistryError> {
        let done = sqlx::query(
            "UPDATE teams SET max_running = ?, max_timeout_hours = ?, retention_days = ?, snapshot_retention_days = ?
             WHERE id = ?",
        )
        .bind(limits.max_running)
        .bind(limits.max_timeout_hours)
        .bind(limits.retention_days)
        .bind(limits.snapshot_retention_days)
        .bind(id.as_str())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}

fn team_row(row: &SqliteRow) -> Result<TeamRow, RegistryError> {
    let id: String = row.get("id");
    Ok(TeamRow {
        id: parse("teams", &id, &id)?,
        name: row.get("name"),
        created_at: parse("teams", &id, row.get("created_at"))?,
        limits: TeamLimits {
            max_running: row.get("max_running"),
            max_timeout_hours: row.get("max_timeout_hours"),
            retention_days: row.get("retention_days"),
            snapshot_retention_days: row.get("snapshot_retention_days"),
        },
    })
}

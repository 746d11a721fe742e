//! Idempotency keys of creates: which sandbox a request that is sent again already made.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use torpor_types::{SandboxId, TeamId};

use super::keys::parse;
use super::{Registry, RegistryError};

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateKeyRow {
    /// Whose key it is: each team has its own.
    pub team_id: TeamId,
    /// The key.
    pub key: String,
    /// Tells a repeated request from another one.
    pub request_hash: String,
    /// The sandbox it made, or was going to make.
    pub sandbox_id: SandboxId,
    /// When it was first used.
    pub created_at: Timestamp,
}

// === impl Registry ===

impl Registry {
    /// What the key stands for, unless that is older than `since`.
    pub async fn create_key(
        &self,
        team: &TeamId,
        key: &str,
        since: Timestamp,
    ) -> Result<Option<CreateKeyRow>, RegistryError> {
        let row = sqlx::query("SELECT * FROM create_keys WHERE team_id = ? AND key = ? AND created_s >= ?")
            .bind(team.as_str())
            .bind(key)
            .bind(since.as_second())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(create_key_row).transpose()
    }

    /// Records what a key stands for from now on, and forgets all keys older than `since`.
    pub async fn put_create_key(&self, row: &CreateKeyRow, since: Timestamp) -> Result<(), RegistryError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM create_keys WHERE created_s < ?")
            .bind(since.as_second())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT OR REPLACE INTO create_keys (team_id, key, request_hash, sandbox_id, created_s)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(row.team_id.as_str())
        .bind(&row.key)
        .bind(&row.request_hash)
        .bind(row.sandbox_id.as_str())
        .bind(row.created_at.as_second())
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Forgets a key.
    pub async fn delete_create_key(&self, team: &TeamId, key: &str) -> Result<(), RegistryError> {
        sqlx::query("DELETE FROM create_keys WHERE team_id = ? AND key = ?")
            .bind(team.as_str())
            .bind(key)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

fn create_key_row(row: &SqliteRow) -> Result<CreateKeyRow, RegistryError> {
    let key: String = row.get("key");
    let seconds: i64 = row.get("created_s");
    let corrupt = |why: String| RegistryError::Corrupt { table: "create_keys", id: key.clone(), why };
    Ok(CreateKeyRow {
        team_id: parse("create_keys", &key, row.get("team_id"))?,
        request_hash: row.get("request_hash"),
        sandbox_id: parse("create_keys", &key, row.get("sandbox_id"))?,
        created_at: Timestamp::from_second(seconds).map_err(|error| corrupt(error.to_string()))?,
        key: key.clone(),
    })
}

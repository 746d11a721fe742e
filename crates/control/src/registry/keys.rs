//! The teams' API keys. A key is stored as its SHA-256 only.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use torpor_types::TeamId;

use super::{Registry, RegistryError};

/// An API key, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// Names the key in `torpor key revoke`.
    pub id: String,
    /// Whose it is.
    pub team_id: TeamId,
    /// A name for people.
    pub name: String,
    /// SHA-256 of the whole key, lower-case hex.
    pub sha256: String,
    /// Enough of the key to recognise it: `e2b_1234…cdef`.
    pub mask: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked; a revoked key opens nothing.
    pub revoked_at: Option<Timestamp>,
}

// === impl Registry ===

impl Registry {
    /// Records a new key.
    pub async fn insert_key(&self, key: &KeyRow) -> Result<(), RegistryError> {
        sqlx::query(
            "INSERT INTO keys (id, team_id, name, sha256, mask, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&key.id)
        .bind(key.team_id.as_str())
        .bind(&key.name)
        .bind(&key.sha256)
        .bind(&key.mask)
        .bind(key.created_at.to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// All keys, the oldest first, revoked ones among them.
    pub async fn keys(&self) -> Result<Vec<KeyRow>, RegistryError> {
        let rows = sqlx::query("SELECT * FROM keys ORDER BY created_at, id").fetch_all(&self.pool).await?;
        rows.iter().map(key_row).collect()
    }

    /// The key with that hash, unless it was revoked.
    pub async fn valid_key_by_hash(&self, sha256: &str) -> Result<Option<KeyRow>, RegistryError> {
        let row = sqlx::query("SELECT * FROM keys WHERE sha256 = ? AND revoked_at IS NULL")
            .bind(sha256)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(key_row).transpose()
    }

    /// Revokes a key by its id. False if there is no such key or it was revoked before.
    pub async fn revoke_key(&self, id: &str) -> Result<bool, RegistryError> {
        let done = sqlx::query("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL")
            .bind(Timestamp::now().to_string())
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The node's secret of that name: the stored value, or `fresh`, which is then stored.
    pub async fn secret(&self, name: &str, fresh: &[u8]) -> Result<Vec<u8>, RegistryError> {
        sqlx::query("INSERT INTO secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(fresh)
            .execute(&self.pool)
            .await?;
        Ok(sqlx::query_scalar("SELECT value FROM secrets WHERE name = ?")
            .bind(name)
            .fetch_one(&self.pool)
            .await?)
    }
}

fn key_row(row: &SqliteRow) -> Result<KeyRow, RegistryError> {
    let id: String = row.get("id");
    let time = |text: String| parse::<Timestamp>("keys", &id, &text);
    Ok(KeyRow {
        team_id: parse("keys", &id, row.get("team_id"))?,
        name: row.get("name"),
        sha256: row.get("sha256"),
        mask: row.get("mask"),
        created_at: time(row.get("created_at"))?,
        revoked_at: row.get::<Option<String>, _>("revoked_at").map(time).transpose()?,
        id: id.clone(),
    })
}

/// Reads a stored text as what it stands for.
pub(super) fn parse<T>(table: &'static str, id: &str, text: &str) -> Result<T, RegistryError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| RegistryError::Corrupt { table, id: id.to_owned(), why: e.to_string() })
}

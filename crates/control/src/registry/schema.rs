//! Tables, and how a database of an older version becomes one of this version.
//!
//! `PRAGMA user_version` holds the version: the number of steps of [`STEPS`] that were applied. A step is never
//! changed once released; a new one is added behind it. An older Torpor refuses a newer database.

use std::path::Path;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::RegistryError;

const STEPS: &[&str] = &[
    "
    CREATE TABLE teams (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        team_id TEXT NOT NULL REFERENCES teams(id),
        name TEXT NOT NULL,
        sha256 TEXT NOT NULL UNIQUE,
        mask TEXT NOT NULL,
        created_at TEXT NOT NULL,
        revoked_at TEXT
    ) STRICT;
    CREATE TABLE templates (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        snapshot_id TEXT NOT NULL,
        vcpus INTEGER NOT NULL,
        memory_mib INTEGER NOT NULL,
        disk_mib INTEGER NOT NULL,
        envd_version TEXT NOT NULL,
        created_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY,
        team_id TEXT NOT NULL REFERENCES teams(id),
        state TEXT NOT NULL,
        machine_id TEXT,
        snapshot_id TEXT,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX sandboxes_team ON sandboxes(team_id);
    CREATE TABLE secrets (
        name TEXT PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT;
",
    "
    ALTER TABLE teams ADD COLUMN max_running INTEGER;
    ALTER TABLE teams ADD COLUMN max_timeout_hours INTEGER;
",
    "
    CREATE TABLE create_keys (
        team_id TEXT NOT NULL REFERENCES teams(id),
        key TEXT NOT NULL,
        request_hash TEXT NOT NULL,
        sandbox_id TEXT NOT NULL,
        created_s INTEGER NOT NULL,
        PRIMARY KEY (team_id, key)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE snapshots (
        id TEXT PRIMARY KEY,
        team_id TEXT NOT NULL REFERENCES teams(id),
        name TEXT,
        tag TEXT NOT NULL,
        snapshot_id TEXT NOT NULL,
        source TEXT NOT NULL,
        record TEXT NOT NULL,
        created_at TEXT NOT NULL,
        UNIQUE (team_id, name, tag)
    ) STRICT;
",
    "
    ALTER TABLE teams ADD COLUMN retention_days INTEGER;
    ALTER TABLE teams ADD COLUMN snapshot_retention_days INTEGER;
",
];

pub(super) async fn open(path: &Path) -> Result<SqlitePool, RegistryError> {
    let shown = path.display().to_string();
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(10));
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .connect_with(options)
        .await
        .map_err(|source| RegistryError::Open { path: shown.clone(), source })?;
    restrict_to_owner(path)
        .map_err(|e| RegistryError::Open { path: shown.clone(), source: sqlx::Error::Io(e) })?;
    upgrade(&pool, &shown).await?;
    Ok(pool)
}

fn restrict_to_owner(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

async fn upgrade(pool: &SqlitePool, path: &str) -> Result<(), RegistryError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await?;
    let known = STEPS.len() as i64;
    let Some(missing) = usize::try_from(found).ok().and_then(|applied| STEPS.get(applied..)) else {
        return Err(RegistryError::TooNew { path: path.to_owned(), found, known });
    };
    for step in missing {
        sqlx::raw_sql(*step).execute(&mut *transaction).await?;
    }
    if !missing.is_empty() {
        // `user_version` takes no bound parameter; the number is ours.
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA user_version = {known}")))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

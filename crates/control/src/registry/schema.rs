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

/// Fails if the database at `path` is of a newer version. There may be none yet.
pub(super) async fn check(path: &Path) -> Result<(), RegistryError> {
    if !path.exists() {
        return Ok(());
    }
    let shown = path.display().to_string();
    let options =
        SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(10));
    let opened = SqlitePoolOptions::new().max_connections(1).connect_with(options).await;
    let pool = opened.map_err(|source| RegistryError::Open { path: shown.clone(), source })?;
    let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&pool).await?;
    pool.close().await;
    missing_steps(found, &shown).map(|_| ())
}

/// The steps that a database of version `found` lacks.
fn missing_steps(found: i64, path: &str) -> Result<&'static [&'static str], RegistryError> {
    let missing = usize::try_from(found).ok().and_then(|applied| STEPS.get(applied..));
    let known = STEPS.len() as i64;
    missing.ok_or_else(|| RegistryError::TooNew { path: path.to_owned(), found, known })
}

fn restrict_to_owner(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

async fn upgrade(pool: &SqlitePool, path: &str) -> Result<(), RegistryError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await?;
    let (missing, known) = (missing_steps(found, path)?, STEPS.len());
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

#[cfg(test)]
mod tests {
    use super::super::Registry;
    use super::*;

    fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files
            .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
            .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    }

    async fn set_version(dir: &Path, version: i64) {
        let pool = open(&dir.join("torpor.db")).await.unwrap();
        let set = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {version}"));
        sqlx::raw_sql(set).execute(&pool).await.unwrap();
        pool.close().await;
    }

    #[tokio::test]
    async fn a_database_of_a_newer_torpor_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        Registry::check(dir.path()).await.unwrap();
        assert_eq!(content(dir.path()).len(), 0, "looking makes no database");
        set_version(dir.path(), 99).await;
        let before = content(dir.path());
        let shown = dir.path().display().to_string();
        let refused = Registry::check(dir.path()).await.unwrap_err();
        assert!(matches!(refused, RegistryError::TooNew { found: 99, .. }), "{refused}");
        insta::assert_snapshot!(
            refused
                .to_string()
                .replace(&shown, "[data]")
                .replace(&format!("up to {}", STEPS.len()), "up to [known]")
        );
        assert!(matches!(Registry::open(dir.path()).await, Err(RegistryError::TooNew { found: 99, .. })));
        assert_eq!(content(dir.path()), before);
    }

    /// The steps of each version that was released stay as they are, so this is every database there can be.
    #[tokio::test]
    async fn a_database_of_every_older_version_is_brought_up_to_date() {
        let newest = tempfile::tempdir().unwrap();
        let expected = schema_of(&open(&newest.path().join("torpor.db")).await.unwrap()).await;
        for version in 0..STEPS.len() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("torpor.db");
            let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
            let old = SqlitePool::connect_with(options).await.unwrap();
            for step in &STEPS[..version] {
                sqlx::raw_sql(*step).execute(&old).await.unwrap();
            }
            let set = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {version}"));
            sqlx::raw_sql(set).execute(&old).await.unwrap();
            if version > 0 {
                let team =
                    "INSERT INTO teams (id, name, created_at) VALUES ('tm1', 'kept', '2026-01-01T00:00:00Z')";
                sqlx::raw_sql(team).execute(&old).await.unwrap();
            }
            old.close().await;
            check(&path).await.unwrap();
            let pool = open(&path).await.unwrap();
            assert_eq!(schema_of(&pool).await, expected, "from version {version}");
            let teams: i64 = sqlx::query_scalar("SELECT count(*) FROM teams").fetch_one(&pool).await.unwrap();
            assert_eq!(teams, i64::from(version > 0), "from version {version}");
        }
    }

    #[test]
    fn the_documentation_names_the_present_version() {
        let page = include_str!("../../../../docs/compatibility.md");
        assert!(page.contains(&format!("the number of steps applied | {} |", STEPS.len())));
    }

    async fn schema_of(pool: &SqlitePool) -> Vec<String> {
        let all = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        sqlx::query_scalar(all).fetch_all(pool).await.unwrap()
    }
}

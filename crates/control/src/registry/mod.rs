//! The database: teams, keys, templates, sandboxes.
//!
//! SQLite in WAL mode with `synchronous=FULL`: a change that was answered is on disk. The server and the `torpor key`
//! commands may have it open at the same time.

mod create_keys;
mod keys;
mod sandboxes;
mod schema;
mod snapshots;
mod teams;
mod templates;

use std::path::Path;

pub use create_keys::CreateKeyRow;
pub use keys::KeyRow;
pub use sandboxes::{SandboxRecord, SandboxRow, StoredState};
pub use snapshots::SnapshotRow;
use sqlx::SqlitePool;
pub use teams::{TeamLimits, TeamRow};
pub use templates::TemplateRow;

/// Handle to the database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    pool: SqlitePool,
}

/// The database did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file cannot be opened or created.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The database file.
        path: String,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// A newer Torpor wrote it.
    #[error(
        "{path} has schema version {found}, this Torpor knows up to {known}: a newer Torpor wrote it. Nothing was changed. \
         Use that one, or a copy of the data directory from before it"
    )]
    TooNew {
        /// The database file.
        path: String,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// A row holds what this version cannot read.
    #[error("row {id} of {table} cannot be read: {why}")]
    Corrupt {
        /// Which table.
        table: &'static str,
        /// Which row.
        id: String,
        /// What is wrong with it.
        why: String,
    },
}

// === impl Registry ===

impl Registry {
    /// Fails if the database in `data_dir` is of a newer Torpor, and changes nothing: before anything else is done there.
    ///
    /// # Errors
    /// [`RegistryError::TooNew`], or [`RegistryError::Open`] when it cannot be read.
    pub async fn check(data_dir: &Path) -> Result<(), RegistryError> {
        schema::check(&data_dir.join("torpor.db")).await
    }

    /// Opens (creating or upgrading) `torpor.db` in `data_dir`, readable by its owner only.
    ///
    /// # Errors
    /// [`RegistryError::Open`] when the file cannot be created, locked or read, [`RegistryError::TooNew`] when a
    /// newer version wrote it.
    pub async fn open(data_dir: &Path) -> Result<Registry, RegistryError> {
        let pool = schema::open(&data_dir.join("torpor.db")).await?;
        Ok(Registry { pool })
    }
}

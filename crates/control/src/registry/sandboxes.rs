//! Sandboxes as the database knows them: the state machine's state, and the rest as one JSON record.
//!
//! State, machine and snapshot are columns, because reconciliation and retention ask for them; everything else lives
//! in `record`, which is also what a pause snapshot's manifest carries, so that the table can be rebuilt from the
//! vault.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use torpor_types::{Egress, MachineId, NetworkConfig, SandboxId, Shape, SnapshotId, TeamId, TemplateId};

use super::keys::parse;
use super::{Registry, RegistryError};

/// Where in its life a sandbox is. Written before the step it names is taken.
///
/// ```text
/// creating ─→ running ─→ pausing ─→ paused ─→ resuming ─→ running …
///     │          │          │          │          │
///     └──────────┴──────────┴── killing┴──────────┘   (then the row is gone)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredState {
    /// Its first machine is being prepared. A crash here: removed, nobody was told of it.
    Creating,
    /// A machine carries it.
    Running,
    /// Its machine is being stopped. A crash here: running again if the machine lives, else its last pause.
    Pausing,
    /// Its machine is stopped; the pause is durable once `snapshot_id` is this pause's snapshot and no machine is
    /// named any more.
    Paused,
    /// A machine is being prepared from its snapshot. A crash here: paused.
    Resuming,
    /// Being destroyed. A crash here: destroyed.
    Killing,
}

/// What a sandbox is beside its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The template it was made from.
    pub template_id: TemplateId,
    /// That template's name at the time.
    pub template_name: String,
    /// Its size.
    pub shape: Shape,
    /// What its agent implements of the envd protocol.
    pub envd_version: String,
    /// When it was created or last resumed.
    pub started_at: Timestamp,
    /// The deadline while running, the moment of the pause while paused.
    pub end_at: Timestamp,
    /// Whether the deadline pauses it instead of killing it.
    pub pause_on_timeout: bool,
    /// Whether the pause at the deadline keeps memory.
    #[serde(default = "yes")]
    pub keep_memory_on_timeout: bool,
    /// Whether its last pause left memory out, so that a resume boots it.
    #[serde(default)]
    pub filesystem_only: bool,
    /// Whether traffic resumes it.
    pub auto_resume: bool,
    /// Seconds without work after which its deadline comes early; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_s: Option<u32>,
    /// Days for which it is kept paused, 0 for ever; `None`: as its team or the server's settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// Seconds its creator gave it to live; 0 in records of before this was kept.
    #[serde(default)]
    pub initial_timeout_s: i64,
    /// Whether its agent demands a token.
    pub secure: bool,
    /// Whether it reaches the internet.
    pub allow_internet: bool,
    /// What traffic it receives and sends.
    #[serde(default)]
    pub network: NetworkConfig,
    /// Free text of its creator.
    pub metadata: BTreeMap<String, String>,
    /// Environment variables given at creation.
    pub env_vars: BTreeMap<String, String>,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRow {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub team_id: TeamId,
    /// Where in its life it is.
    pub state: StoredState,
    /// The machine that carries it, also one that is stopped and not yet saved.
    pub machine_id: Option<MachineId>,
    /// Its own newest durable snapshot: of its last pause. `None` until the first pause is durable.
    pub snapshot_id: Option<SnapshotId>,
    /// The rest.
    pub record: SandboxRecord,
}

/// What a record from before a setting existed has for it.
fn yes() -> bool {
    true
}

// === impl SandboxRecord ===

impl SandboxRecord {
    /// What it reaches, all settings together.
    pub fn egress(&self) -> Egress {
        let egress = self.network.egress.clone();
        if self.allow_internet { egress } else { egress.without_internet() }
    }
}

// === impl StoredState ===

impl StoredState {
    fn as_str(self) -> &'static str {
        match self {
            StoredState::Creating => "creating",
            StoredState::Running => "running",
            StoredState::Pausing => "pausing",
            StoredState::Paused => "paused",
            StoredState::Resuming => "resuming",
            StoredState::Killing => "killing",
        }
    }
}

impl std::str::FromStr for StoredState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "creating" => StoredState::Creating,
            "running" => StoredState::Running,
            "pausing" => StoredState::Pausing,
            "paused" => StoredState::Paused,
            "resuming" => StoredState::Resuming,
            "killing" => StoredState::Killing,
            other => return Err(format!("unknown state '{other}'")),
        })
    }
}

// === impl Registry ===

impl Registry {
    /// Records a new sandbox.
    pub async fn insert_sandbox(&self, row: &SandboxRow) -> Result<(), RegistryError> {
        sqlx::query(
            "INSERT INTO sandboxes (id, team_id, state, machine_id, snapshot_id, record) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(row.id.as_str())
        .bind(row.team_id.as_str())
        .bind(row.state.as_str())
        .bind(row.machine_id.as_ref().map(MachineId::as_str))
        .bind(row.snapshot_id.as_ref().map(SnapshotId::as_str))
        .bind(record_text(row)?)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Replaces a sandbox's row if it is still in state `expected` (compare-and-set). False if it is not.
    pub async fn update_sandbox(
        &self,
        row: &SandboxRow,
        expected: StoredState,
    ) -> Result<bool, RegistryError> {
        let done = sqlx::query(
            "UPDATE sandboxes SET state = ?, machine_id = ?, snapshot_id = ?, record = ? WHERE id = ? AND state = ?",
        )
        .bind(row.state.as_str())
        .bind(row.machine_id.as_ref().map(MachineId::as_str))
        .bind(row.snapshot_id.as_ref().map(SnapshotId::as_str))
        .bind(record_text(row)?)
        .bind(row.id.as_str())
        .bind(expected.as_str())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Forgets a sandbox.
    pub async fn delete_sandbox(&self, id: &SandboxId) -> Result<(), RegistryError> {
        sqlx::query("DELETE FROM sandboxes WHERE id = ?").bind(id.as_str()).execute(&self.pool).await?;
        Ok(())
    }

    /// All sandboxes of all teams.
    pub async fn sandboxes(&self) -> Result<Vec<SandboxRow>, RegistryError> {
        let rows = sqlx::query("SELECT * FROM sandboxes").fetch_all(&self.pool).await?;
        rows.iter().map(sandbox_row).collect()
    }
}

fn record_text(row: &SandboxRow) -> Result<String, RegistryError> {
    serde_json::to_string(&row.record).map_err(|e| corrupt(row.id.as_str(), e))
}

fn corrupt(id: &str, why: impl std::fmt::Display) -> RegistryError {
    RegistryError::Corrupt { table: "sandboxes", id: id.to_owned(), why: why.to_string() }
}

fn sandbox_row(row: &SqliteRow) -> Result<SandboxRow, RegistryError> {
    let id: String = row.get("id");
    let optional = |column: &str| row.get::<Option<String>, _>(column);
    Ok(SandboxRow {
        team_id: parse("sandboxes", &id, row.get("team_id"))?,
        state: parse("sandboxes", &id, row.get("state"))?,
        machine_id: optional("machine_id").map(|text| parse("sandboxes", &id, &text)).transpose()?,
        snapshot_id: optional("snapshot_id").map(|text| parse("sandboxes", &id, &text)).transpose()?,
        record: serde_json::from_str(row.get("record")).map_err(|e| corrupt(&id, e))?,
        id: parse("sandboxes", &id, &id)?,
    })
}

//! `torpor snapshot`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Api, quote, read, sandbox_path};
use super::table::table;
use super::{ClientError, Endpoint, say, say_json};

/// Snapshots: starting points taken of running sandboxes
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(crate) struct SnapshotCommand {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Take a snapshot of a running sandbox, which goes on, and print its id for `torpor sandbox create`
    Take {
        /// Id of the sandbox
        id: String,
        /// A name, or name:tag; one that exists is taken anew
        #[arg(long, short)]
        name: Option<String>,
        /// Leave memory out: sandboxes made of it boot
        #[arg(long)]
        disk_only: bool,
        /// Print JSON instead of the bare id
        #[arg(long)]
        json: bool,
    },
    /// List the snapshots there are, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Only those taken of this sandbox
        #[arg(long)]
        sandbox: Option<String>,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Delete snapshots; one that sandboxes were made from has to wait until those are killed
    #[command(visible_alias = "rm")]
    Delete {
        /// Ids or names
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Deserialize)]
struct SnapshotInfo {
    #[serde(rename = "snapshotID")]
    id: String,
    names: Vec<String>,
}

// === impl SnapshotCommand ===

impl SnapshotCommand {
    /// Does what was asked. `data_dir` is where a key for this host's server may be.
    pub(crate) async fn run(self, data_dir: &Path) -> Result<(), ClientError> {
        let api = self.endpoint.api(data_dir)?;
        match self.action {
            Action::Take { id, name, disk_only, json } => take(&api, &id, name, disk_only, json).await,
            Action::List { sandbox, json } => list(&api, sandbox.as_deref(), json).await,
            Action::Delete { ids } => {
                super::sandbox::each(ids, async |id: &str| {
                    api.delete(&format!("/templates/{}", quote(id))).await
                })
                .await
            }
        }
    }
}

async fn take(
    api: &Api,
    id: &str,
    name: Option<String>,
    disk_only: bool,
    json: bool,
) -> Result<(), ClientError> {
    let body = json!({ "name": name, "memory": !disk_only });
    let (_, value) = api.post(&sandbox_path(id, "/snapshots"), body).await?;
    if json {
        return say_json(&value);
    }
    let taken: SnapshotInfo = read("POST /sandboxes/{id}/snapshots", value)?;
    say(&taken.id)
}

async fn list(api: &Api, sandbox: Option<&str>, json: bool) -> Result<(), ClientError> {
    let of = sandbox.map(|id| format!("sandboxID={}", quote(id))).unwrap_or_default();
    let all = api.pages("/snapshots", &of).await?;
    if json {
        return say_json(&all);
    }
    let all: Vec<SnapshotInfo> = read("GET /snapshots", Value::Array(all))?;
    let row = |snapshot: &SnapshotInfo| [snapshot.id.clone(), snapshot.names.join(", ")];
    say(&table(["ID", "NAMES"], &all.iter().map(row).collect::<Vec<_>>()))
}

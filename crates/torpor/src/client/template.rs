//! `torpor template`.

use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::api::read;
use super::table::{age, table};
use super::{ClientError, Endpoint, say, say_json};

/// Templates: the starting points of sandboxes
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(crate) struct TemplateCommand {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the templates there are
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TemplateInfo {
    #[serde(rename = "templateID")]
    id: String,
    names: Vec<String>,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mib: u32,
    #[serde(rename = "diskSizeMB")]
    disk_mib: u32,
    updated_at: Timestamp,
}

// === impl TemplateCommand ===

impl TemplateCommand {
    /// Does what was asked. `data_dir` is where a key for this host's server may be.
    pub(crate) async fn run(self, data_dir: &Path) -> Result<(), ClientError> {
        let api = self.endpoint.api(data_dir)?;
        match self.action {
            Action::List { json } => {
                let value: Value = api.get("/templates").await?;
                if json {
                    return say_json(&value);
                }
                let templates: Vec<TemplateInfo> = read("GET /templates", value)?;
                say(&show(&templates, Timestamp::now()))
            }
        }
    }
}

fn show(templates: &[TemplateInfo], now: Timestamp) -> String {
    let row = |template: &TemplateInfo| {
        [
            template.names.first().unwrap_or(&template.id).clone(),
            template.id.clone(),
            template.cpu_count.to_string(),
            format!("{} MiB", template.memory_mib),
            format!("{} MiB", template.disk_mib),
            age(template.updated_at, now),
        ]
    };
    let rows: Vec<_> = templates.iter().map(row).collect();
    table(["NAME", "ID", "VCPUS", "MEMORY", "DISK", "BUILT"], &rows)
}

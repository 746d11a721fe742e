//! `torpor key`: API keys, made and revoked in the database itself.

use std::path::Path;

use jiff::Timestamp;
use serde_json::json;
use torpor_control::keys;
use torpor_control::registry::{KeyRow, Registry};

use super::table::{age, table};
use super::{ClientError, say, say_json};

/// API keys of the node whose data directory this is; works while the server runs and while it does not
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(crate) struct KeyCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a key and print it: this once, for only its hash is stored
    Create {
        /// What to call it in the list
        #[arg(long, short, default_value = "unnamed")]
        name: String,
        /// Print JSON instead of the bare key
        #[arg(long)]
        json: bool,
    },
    /// List the keys there are, without the keys themselves
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Revoke keys by their ids: they open nothing from that moment on
    Revoke {
        /// Ids, as `torpor key list` shows them
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

// === impl KeyCommand ===

impl KeyCommand {
    /// Does what was asked to the keys in `data_dir`.
    pub(crate) async fn run(self, data_dir: &Path) -> Result<(), ClientError> {
        if !data_dir.is_dir() {
            return Err(ClientError::Io {
                what: "there is no data directory (make one with `torpor setup`, or name it with --data-dir)",
                source: std::io::Error::new(std::io::ErrorKind::NotFound, data_dir.display().to_string()),
            });
        }
        let registry = Registry::open(data_dir).await?;
        match self.action {
            Action::Create { name, json } => {
                let (key, row) = keys::create(&registry, &name).await?;
                if json {
                    let mut value = as_json(&row);
                    value["key"] = json!(key.reveal());
                    return say_json(&value);
                }
                say(key.reveal())?;
                eprintln!(
                    "Made key {} ('{}'). It is not stored and will not be shown again.",
                    row.id, row.name
                );
                Ok(())
            }
            Action::List { json } => {
                let rows = registry.keys().await?;
                if json {
                    say_json(&rows.iter().map(as_json).collect::<Vec<_>>())
                } else {
                    say(&show(&rows, Timestamp::now()))
                }
            }
            Action::Revoke { ids } => {
                for id in &ids {
                    keys::revoke(&registry, id).await?;
                    say(id)?;
                }
                Ok(())
            }
        }
    }
}

fn show(rows: &[KeyRow], now: Timestamp) -> String {
    let row = |key: &KeyRow| {
        let state =
            key.revoked_at.map_or_else(|| "valid".to_owned(), |at| format!("revoked {}", age(at, now)));
        [key.id.clone(), key.name.clone(), key.mask.clone(), age(key.created_at, now), state]
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    table(["ID", "NAME", "KEY", "MADE", "STATE"], &rows)
}

fn as_json(row: &KeyRow) -> serde_json::Value {
    json!({
        "id": row.id,
        "name": row.name,
        "mask": row.mask,
        "createdAt": row.created_at.to_string(),
        "revokedAt": row.revoked_at.map(|at| at.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_keys_shows_which_are_valid_and_none_in_full() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let key = |name: &str, made: &str, revoked: Option<&str>| KeyRow {
            id: "k1234567890".to_owned(),
            team_id: "gteam".parse().unwrap(),
            name: name.to_owned(),
            sha256: "0".repeat(64),
            mask: "e2b_1234…cdef".to_owned(),
            created_at: made.parse().unwrap(),
            revoked_at: revoked.map(|at| at.parse().unwrap()),
        };
        let rows = [
            key("first", "2026-01-01T00:00:00Z", None),
            key("laptop", "2026-01-31T11:30:00Z", Some("2026-01-31T11:59:30Z")),
        ];
        insta::assert_snapshot!(show(&rows, now));
    }
}

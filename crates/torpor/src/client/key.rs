//! `torpor key`: API keys, made and revoked in the database itself.

use std::path::Path;

use jiff::Timestamp;
use serde_json::json;
use torpor_control::registry::{KeyRow, TeamRow};
use torpor_control::{keys, teams};

use super::table::{age, table};
use super::{ClientError, open_registry, say, say_json};

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
        /// Whose it is
        #[arg(long, short, default_value = keys::DEFAULT_TEAM)]
        team: String,
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
        let registry = open_registry(data_dir).await?;
        match self.action {
            Action::Create { name, team, json } => {
                let team = teams::find(&registry, &team).await?;
                let (key, row) = keys::create_for(&registry, team.clone(), &name).await?;
                if json {
                    let mut value = as_json(&row, &[team]);
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
                let (rows, teams) = (registry.keys().await?, registry.teams().await?);
                if json {
                    say_json(&rows.iter().map(|row| as_json(row, &teams)).collect::<Vec<_>>())
                } else {
                    say(&show(&rows, &teams, Timestamp::now()))
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

fn show(rows: &[KeyRow], teams: &[TeamRow], now: Timestamp) -> String {
    let row = |key: &KeyRow| {
        let state =
            key.revoked_at.map_or_else(|| "valid".to_owned(), |at| format!("revoked {}", age(at, now)));
        let team = team_name(key, teams).to_owned();
        [key.id.clone(), team, key.name.clone(), key.mask.clone(), age(key.created_at, now), state]
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    table(["ID", "TEAM", "NAME", "KEY", "MADE", "STATE"], &rows)
}

/// The name of the key's team; the database does not let a team go that has keys.
fn team_name<'a>(key: &KeyRow, teams: &'a [TeamRow]) -> &'a str {
    teams.iter().find(|team| team.id == key.team_id).map_or("?", |team| &team.name)
}

fn as_json(row: &KeyRow, teams: &[TeamRow]) -> serde_json::Value {
    json!({
        "id": row.id,
        "team": team_name(row, teams),
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
        let team = TeamRow {
            id: "gteam".parse().unwrap(),
            name: "default".to_owned(),
            created_at: now,
            limits: Default::default(),
        };
        insta::assert_snapshot!(show(&rows, &[team], now));
    }
}

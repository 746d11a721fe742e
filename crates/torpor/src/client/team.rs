//! `torpor team`: teams and their limits, in the database itself.

use std::path::Path;
use std::str::FromStr;

use jiff::Timestamp;
use serde_json::json;
use torpor_control::registry::{TeamLimits, TeamRow};
use torpor_control::retention::MAX_DAYS;
use torpor_control::teams;

use super::table::{age, table};
use super::{ClientError, open_registry, say, say_json};

/// Teams of the node whose data directory this is: keys and sandboxes belong to one, and no other sees them
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(crate) struct TeamCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a team; `torpor key create --team` makes keys for it
    Create {
        /// Lower-case letters, digits, '-' and '_'
        name: String,
        #[command(flatten)]
        limits: LimitOptions,
        /// Print JSON instead
        #[arg(long)]
        json: bool,
    },
    /// List the teams there are
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Change a team's limits; what is not named stays. They hold from the next request on
    SetLimits {
        /// The team
        name: String,
        #[command(flatten)]
        limits: LimitOptions,
        /// Print JSON instead
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, clap::Args)]
struct LimitOptions {
    /// Sandboxes it may have running at the same time; `default`: as the server's settings say
    #[arg(long, value_name = "NUMBER|default")]
    max_running: Option<Limit>,
    /// Hours a sandbox may run without a resume; `default`: as the server's settings say
    #[arg(long, value_name = "HOURS|default")]
    max_timeout_hours: Option<Limit>,
    /// Days for which a sandbox is kept paused, 0 for ever; `default`: as the server's settings say
    #[arg(long, value_name = "DAYS|default")]
    retention_days: Option<Limit<MAX_DAYS>>,
    /// Days for which a snapshot is kept, 0 for ever; `default`: as the server's settings say
    #[arg(long, value_name = "DAYS|default")]
    snapshot_retention_days: Option<Limit<MAX_DAYS>>,
}

/// A number, or `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit<const MOST: u32 = { u32::MAX }>(Option<u32>);

// === impl Limit ===

impl<const MOST: u32> FromStr for Limit<MOST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("default", _) => Ok(Self(None)),
            (_, Ok(number)) if number <= MOST => Ok(Self(Some(number))),
            (_, Ok(_)) => Err(format!("it must not be over {MOST}")),
            (_, Err(_)) => Err("it must be a number or 'default'".to_owned()),
        }
    }
}

// === impl LimitOptions ===

impl LimitOptions {
    /// What `old` becomes.
    fn change(self, old: TeamLimits) -> TeamLimits {
        TeamLimits {
            max_running: self.max_running.map_or(old.max_running, |limit| limit.0),
            max_timeout_hours: self.max_timeout_hours.map_or(old.max_timeout_hours, |limit| limit.0),
            retention_days: self.retention_days.map_or(old.retention_days, |limit| limit.0),
            snapshot_retention_days: self
                .snapshot_retention_days
                .map_or(old.snapshot_retention_days, |limit| limit.0),
        }
    }
}

// === impl TeamCommand ===

impl TeamCommand {
    /// Does what was asked to the teams in `data_dir`.
    pub(crate) async fn run(self, data_dir: &Path) -> Result<(), ClientError> {
        let registry = open_registry(data_dir).await?;
        let now = Timestamp::now();
        let (team, json) = match self.action {
            Action::List { json } => {
                let rows = registry.teams().await?;
                return match json {
                    true => say_json(&rows.iter().map(as_json).collect::<Vec<_>>()),
                    false => say(&show(&rows, now)),
                };
            }
            Action::Create { name, limits, json } => {
                (teams::create(&registry, &name, limits.change(TeamLimits::default())).await?, json)
            }
            Action::SetLimits { name, limits, json } => {
                (teams::change_limits(&registry, &name, |old| limits.change(old)).await?, json)
            }
        };
        if json { say_json(&as_json(&team)) } else { say(&show(&[team], now)) }
    }
}

fn show(rows: &[TeamRow], now: Timestamp) -> String {
    let limit = |limit: Option<u32>| limit.map_or_else(|| "default".to_owned(), |limit| limit.to_string());
    let row = |team: &TeamRow| {
        let TeamLimits { max_running, max_timeout_hours, retention_days, snapshot_retention_days } =
            team.limits;
        [
            team.id.to_string(),
            team.name.clone(),
            limit(max_running),
            limit(max_timeout_hours),
            limit(retention_days),
            limit(snapshot_retention_days),
            age(team.created_at, now),
        ]
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    table(["ID", "NAME", "MAX RUNNING", "MAX HOURS", "KEPT DAYS", "SNAPSHOT DAYS", "MADE"], &rows)
}

fn as_json(team: &TeamRow) -> serde_json::Value {
    json!({
        "id": team.id,
        "name": team.name,
        "maxRunning": team.limits.max_running,
        "maxTimeoutHours": team.limits.max_timeout_hours,
        "retentionDays": team.limits.retention_days,
        "snapshotRetentionDays": team.limits.snapshot_retention_days,
        "createdAt": team.created_at.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_teams_shows_which_limits_are_their_own() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let team = |name: &str, max_running, max_timeout_hours| TeamRow {
            id: "gteam".parse().unwrap(),
            name: name.to_owned(),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            limits: TeamLimits { max_running, max_timeout_hours, ..TeamLimits::default() },
        };
        insta::assert_snapshot!(show(
            &[team("default", None, None), team("research", Some(20), Some(8))],
            now
        ));
    }

    #[test]
    fn a_limit_that_is_not_named_stays_and_default_takes_it_away() {
        let old = TeamLimits { max_running: Some(1), max_timeout_hours: Some(2), ..TeamLimits::default() };
        let change = |max_running: Option<&str>| {
            let max_running = max_running.map(|text| text.parse().unwrap());
            let options = LimitOptions {
                max_running,
                max_timeout_hours: None,
                retention_days: None,
                snapshot_retention_days: None,
            };
            options.change(old).max_running
        };
        assert_eq!([change(None), change(Some("7")), change(Some("default"))], [Some(1), Some(7), None]);
        assert!("many".parse::<Limit>().is_err());
        assert!("40000".parse::<Limit<MAX_DAYS>>().is_err());
    }
}

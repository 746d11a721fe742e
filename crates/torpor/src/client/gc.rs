//! `torpor gc`: what the server removes because it was kept long enough.

use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::json;
use torpor_control::lifecycle::Collected;
use torpor_control::retention::{InUse, Plan, Removal};

use super::api::read;
use super::table::{age, table};
use super::{ClientError, Endpoint, say, say_json};
use crate::setup::size;

/// Remove paused sandboxes and snapshots that were kept as long as the settings, their team or their creator say
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(crate) struct GcCommand {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Only say what would be removed, and why
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

// === impl GcCommand ===

impl GcCommand {
    /// Has the server do it, or say what it would do. Fails if something could not be removed.
    pub(crate) async fn run(self, data_dir: &Path) -> Result<ExitCode, ClientError> {
        let api = self.endpoint.api(data_dir)?;
        let no_collector = |error| match error {
            ClientError::NoAnswer { url, why } => ClientError::NoCollector { url, why },
            other => other,
        };
        let now = Timestamp::now();
        if self.dry_run {
            let plan: Plan = api.get("/admin/gc").await.map_err(no_collector)?;
            match self.json {
                true => say_json(&plan)?,
                false => say(&show_plan(&plan, now))?,
            }
            return Ok(ExitCode::SUCCESS);
        }
        let (_, done) = api.post("/admin/gc", json!({})).await.map_err(no_collector)?;
        let done: Collected = read("POST /admin/gc", done)?;
        match self.json {
            true => say_json(&done)?,
            false => say(&show_done(&done, now))?,
        }
        Ok(if done.skipped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn show_plan(plan: &Plan, now: Timestamp) -> String {
    let sum = summary(&plan.removals, "to remove");
    let kept = in_use(&plan.in_use);
    [removals(&plan.removals, now)]
        .into_iter()
        .flatten()
        .chain(kept)
        .chain([sum])
        .collect::<Vec<_>>()
        .join("\n")
}

fn show_done(done: &Collected, now: Timestamp) -> String {
    let skipped = done.skipped.iter().map(|skipped| {
        format!("kept: {} {}, for {}", skipped.removal.what, skipped.removal.name, skipped.why)
    });
    let lines = removals(&done.removed, now).into_iter().chain(skipped).chain(in_use(&done.in_use));
    lines.chain([summary(&done.removed, "removed")]).collect::<Vec<_>>().join("\n")
}

fn removals(removals: &[Removal], now: Timestamp) -> Option<String> {
    let row = |removal: &Removal| {
        [
            removal.what.to_string(),
            removal.name.clone(),
            removal.team.clone(),
            age(removal.since, now),
            size(removal.own_bytes),
            removal.reason(),
        ]
    };
    let rows: Vec<_> = removals.iter().map(row).collect();
    (!rows.is_empty()).then(|| table(["WHAT", "NAME", "TEAM", "SINCE", "FREES", "WHY"], &rows))
}

fn in_use(kept: &[InUse]) -> impl Iterator<Item = String> {
    kept.iter().map(|kept| {
        let users: Vec<&str> = kept.sandboxes.iter().map(|id| id.as_str()).collect();
        format!("kept: snapshot {}, for sandboxes were made from it: {}", kept.name, users.join(", "))
    })
}

fn summary(removals: &[Removal], done: &str) -> String {
    match removals.len() {
        0 => format!("nothing {done}"),
        count => {
            let bytes = removals.iter().map(|removal| removal.own_bytes).sum();
            format!("{count} {done}, which frees at least {}", size(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use torpor_control::registry::TeamLimits;
    use torpor_control::retention::{Facts, Retention, SandboxFacts, SnapshotFacts, TeamFacts, plan};

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_plan_says_what_goes_why_and_what_stays_all_the_same() {
        let now = at("2026-03-01T00:00:00Z");
        let team = |id: &str, name: &str, limits| TeamFacts {
            id: id.parse().unwrap(),
            name: name.to_owned(),
            limits,
        };
        let sandbox = |id: &str, team: &str, origin: &str, paused: &str, retention_days| SandboxFacts {
            id: id.parse().unwrap(),
            team: team.parse().unwrap(),
            origin: origin.parse().unwrap(),
            paused_at: Some(at(paused)),
            retention_days,
        };
        let snapshot = |id: &str, name: &str| SnapshotFacts {
            id: id.parse().unwrap(),
            name: name.to_owned(),
            team: "gresearch".parse().unwrap(),
            taken_at: at("2026-01-10T00:00:00Z"),
        };
        let limits = TeamLimits {
            retention_days: Some(7),
            snapshot_retention_days: Some(14),
            ..TeamLimits::default()
        };
        let facts = Facts {
            now,
            retention: Retention::default(),
            teams: vec![
                team("gdefault", "default", TeamLimits::default()),
                team("gresearch", "research", limits),
            ],
            sandboxes: vec![
                sandbox("iold", "gdefault", "tbase", "2026-01-15T08:00:00Z", None),
                sandbox("iyoung", "gdefault", "tbase", "2026-02-15T08:00:00Z", None),
                sandbox("iforever", "gdefault", "tbase", "2025-01-15T08:00:00Z", Some(0)),
                sandbox("ishort", "gdefault", "tused", "2026-02-27T08:00:00Z", Some(1)),
                sandbox("iteam", "gresearch", "tbase", "2026-02-20T08:00:00Z", None),
                sandbox("iuser", "gresearch", "tkept", "2026-02-28T08:00:00Z", None),
            ],
            snapshots: vec![
                snapshot("tused", "research/free:default"),
                snapshot("tkept", "research/used:v1"),
            ],
        };
        let mut plan = plan(&facts);
        for removal in &mut plan.removals {
            removal.own_bytes = match removal.id.as_str() {
                "iold" => 310 << 20,
                "iteam" => 44 << 20,
                "ishort" => 12 << 20,
                _ => 3 << 30,
            };
        }
        insta::assert_snapshot!(show_plan(&plan, now));
        insta::assert_snapshot!(show_plan(&Plan::default(), now));
    }
}

//! Retention: how long what nobody uses is kept, and what is to be removed now.
//!
//! A sandbox is kept *paused* for a number of days, counted from its pause; a *snapshot* that a user took is kept for a
//! number of days, counted from when it was taken. 0 days means for ever. Who says it, the nearest first: the sandbox's
//! creator, its team, the server's settings.
//!
//! [`plan`] is a pure function from [`Facts`] to a [`Plan`], which can be printed, compared and carried out:
//!
//! ```text
//!  database, vault, clock ──▶ Facts ──plan──▶ Plan ──▶ table, JSON          torpor gc --dry-run
//!                                              └─────▶ lifecycle::collect   torpor gc, and the server every hour
//! ```
//!
//! A snapshot from which a sandbox that stays was made is kept, whatever its age, as a user's delete would be refused.

use std::collections::HashSet;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use torpor_types::{SandboxId, TeamId, TemplateId};
use utoipa::ToSchema;

use crate::registry::TeamLimits;

/// The longest retention that can be asked for, in days: a hundred years.
pub const MAX_DAYS: u32 = 36_500;

const DAY_S: i64 = 86_400;

/// How long what nobody uses is kept, in days; 0 is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A paused sandbox, from its pause.
    pub paused_days: u32,
    /// A snapshot, from when it was taken.
    pub snapshot_days: u32,
}

/// All that a plan depends on.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The present.
    pub now: Timestamp,
    /// What holds for teams that do not say.
    pub retention: Retention,
    /// The teams there are.
    pub teams: Vec<TeamFacts>,
    /// Every sandbox, running ones too.
    pub sandboxes: Vec<SandboxFacts>,
    /// Every snapshot that a user took.
    pub snapshots: Vec<SnapshotFacts>,
}

/// A team.
#[derive(Debug, Clone)]
pub struct TeamFacts {
    /// Its id.
    pub id: TeamId,
    /// Its name.
    pub name: String,
    /// What it says of retention, among other things.
    pub limits: TeamLimits,
}

/// A sandbox.
#[derive(Debug, Clone)]
pub struct SandboxFacts {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub team: TeamId,
    /// The template or snapshot it was made from.
    pub origin: TemplateId,
    /// When it was paused, if it is, and the pause is durable.
    pub paused_at: Option<Timestamp>,
    /// What its creator said, in days.
    pub retention_days: Option<u32>,
}

/// A snapshot that a user took.
#[derive(Debug, Clone)]
pub struct SnapshotFacts {
    /// Its id.
    pub id: TemplateId,
    /// What its user calls it.
    pub name: String,
    /// Whose it is.
    pub team: TeamId,
    /// When it was taken.
    pub taken_at: Timestamp,
}

/// What is to be removed, and what is not although its time is over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CollectionPlan)]
pub struct Plan {
    /// In this order: sandboxes first, for they stand on snapshots.
    pub removals: Vec<Removal>,
    /// Snapshots whose time is over and that are in use.
    pub in_use: Vec<InUse>,
}

/// One thing to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// What it is.
    pub what: What,
    /// Its id.
    pub id: String,
    /// What people call it: a snapshot's name, or the id again.
    pub name: String,
    /// Whose it is, by id.
    #[serde(rename = "teamID")]
    #[schema(value_type = String)]
    pub team_id: TeamId,
    /// Whose it is, by name.
    pub team: String,
    /// When it was paused or taken.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// How many days it was to be kept.
    pub kept_days: u32,
    /// Who said so.
    pub said_by: SaidBy,
    /// Bytes that become free: at least these, for what two that go share is in neither's count. [`plan`] leaves them at 0,
    /// for whoever can measure them.
    pub own_bytes: u64,
}

/// A snapshot whose time is over, and why it stays all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InUse {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Sandboxes that were made from it.
    #[schema(value_type = Vec<String>)]
    pub sandboxes: Vec<SandboxId>,
}

/// What can be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A paused sandbox, with everything in it.
    Sandbox,
    /// A snapshot that a user took.
    Snapshot,
}

/// Who said how long something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SaidBy {
    /// Its creator.
    Sandbox,
    /// Its team's limits.
    Team,
    /// The server's settings.
    Server,
}

/// What is to be removed now.
pub fn plan(facts: &Facts) -> Plan {
    let team = |id: &TeamId| facts.teams.iter().find(|team| team.id == *id);
    let name_of = |id: &TeamId| team(id).map_or_else(|| id.to_string(), |team| team.name.clone());
    let limits_of = |id: &TeamId| team(id).map(|team| team.limits).unwrap_or_default();
    let mut removals = Vec::new();
    for sandbox in &facts.sandboxes {
        let Some(paused_at) = sandbox.paused_at else { continue };
        let (days, said_by) = facts.retention.of_paused(&limits_of(&sandbox.team), sandbox.retention_days);
        if is_over(paused_at, days, facts.now) {
            removals.push(Removal {
                what: What::Sandbox,
                id: sandbox.id.to_string(),
                name: sandbox.id.to_string(),
                team_id: sandbox.team.clone(),
                team: name_of(&sandbox.team),
                since: paused_at,
                kept_days: days,
                said_by,
                own_bytes: 0,
            });
        }
    }
    let going: HashSet<String> = removals.iter().map(|removal| removal.id.clone()).collect();
    let mut in_use = Vec::new();
    for snapshot in &facts.snapshots {
        let (days, said_by) = facts.retention.of_snapshot(&limits_of(&snapshot.team));
        if !is_over(snapshot.taken_at, days, facts.now) {
            continue;
        }
        let made_from_it = facts.sandboxes.iter().filter(|sandbox| sandbox.origin == snapshot.id);
        let staying = made_from_it.map(|sandbox| &sandbox.id).filter(|id| !going.contains(id.as_str()));
        let mut staying: Vec<SandboxId> = staying.cloned().collect();
        staying.sort();
        if staying.is_empty() {
            removals.push(Removal {
                what: What::Snapshot,
                id: snapshot.id.to_string(),
                name: snapshot.name.clone(),
                team_id: snapshot.team.clone(),
                team: name_of(&snapshot.team),
                since: snapshot.taken_at,
                kept_days: days,
                said_by,
                own_bytes: 0,
            });
        } else {
            in_use.push(InUse {
                id: snapshot.id.to_string(),
                name: snapshot.name.clone(),
                sandboxes: staying,
            });
        }
    }
    // Sandboxes before snapshots, the longest kept first; the order of the facts has no say.
    removals.sort_by(|a, b| (a.what as u8, a.since, &a.id).cmp(&(b.what as u8, b.since, &b.id)));
    in_use.sort_by(|a, b| a.id.cmp(&b.id));
    Plan { removals, in_use }
}

/// When something that is to be kept for `days` from `since` may go; `None` if never.
pub fn kept_until(since: Timestamp, days: u32) -> Option<Timestamp> {
    if days == 0 {
        return None;
    }
    // Beyond the end of time is never.
    since.checked_add(SignedDuration::from_secs(i64::from(days) * DAY_S)).ok()
}

fn is_over(since: Timestamp, days: u32, now: Timestamp) -> bool {
    kept_until(since, days).is_some_and(|until| until <= now)
}

// === impl Retention ===

impl Default for Retention {
    fn default() -> Retention {
        Retention { paused_days: 30, snapshot_days: 0 }
    }
}

impl Retention {
    /// For how many days a paused sandbox is kept, and who says so.
    pub(crate) fn of_paused(&self, team: &TeamLimits, sandbox_days: Option<u32>) -> (u32, SaidBy) {
        match (sandbox_days, team.retention_days) {
            (Some(days), _) => (days, SaidBy::Sandbox),
            (None, Some(days)) => (days, SaidBy::Team),
            (None, None) => (self.paused_days, SaidBy::Server),
        }
    }

    /// For how many days a snapshot is kept, and who says so.
    fn of_snapshot(&self, team: &TeamLimits) -> (u32, SaidBy) {
        match team.snapshot_retention_days {
            Some(days) => (days, SaidBy::Team),
            None => (self.snapshot_days, SaidBy::Server),
        }
    }
}

// === impl Removal ===

impl Removal {
    /// Why it goes, in words.
    pub fn reason(&self) -> String {
        let did = match self.what {
            What::Sandbox => "paused",
            What::Snapshot => "taken",
        };
        let who = match self.said_by {
            SaidBy::Sandbox => "its creator",
            SaidBy::Team => "its team",
            SaidBy::Server => "the server",
        };
        let days = self.kept_days;
        format!(
            "{did} more than {days} day{} ago, as long as {who} keeps it",
            if days == 1 { "" } else { "s" }
        )
    }
}

// === impl What ===

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            What::Sandbox => "sandbox",
            What::Snapshot => "snapshot",
        })
    }
}

#[cfg(test)]
mod tests;

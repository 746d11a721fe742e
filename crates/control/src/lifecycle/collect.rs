//! Removing what was kept long enough: facts from here, the plan from [`retention`](crate::retention), and carrying it out.
//!
//! Between the plan and its execution a sandbox may be resumed and a snapshot taken anew. So each removal is asked for
//! with the moment it was planned for, and whoever owns the thing (a sandbox's actor, the lock on snapshots' names) does
//! it only if that has not changed.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use torpor_types::{SandboxId, SnapshotId, TeamId};
use utoipa::ToSchema;

use super::Sandboxes;
use super::actor::{Operation, chain};
use super::api::{LifecycleError, SandboxView, VisibleState};
use crate::registry::{RegistryError, StoredState};
use crate::retention::{self, Facts, InUse, Plan, Removal, SandboxFacts, SnapshotFacts, TeamFacts, What};

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// What is gone.
    pub removed: Vec<Removal>,
    /// What was to go and stays.
    pub skipped: Vec<Skipped>,
    /// Snapshots whose time is over and that are in use.
    pub in_use: Vec<InUse>,
}

/// Something that was to go and stays, for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// What.
    pub removal: Removal,
    /// Why it stays.
    pub why: String,
}

/// What was kept long enough could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The database did not do as asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A snapshot's name could not be found out.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// The snapshots could not be measured.
    #[error("measuring the snapshots ended early: {0}")]
    Measure(#[from] tokio::task::JoinError),
}

// === impl Sandboxes ===

impl Sandboxes {
    /// What [`collect`](Self::collect) would remove now, of all teams.
    ///
    /// # Errors
    /// [`CollectError`].
    pub async fn plan_collection(&self) -> Result<Plan, CollectError> {
        let (facts, standing_on) = self.facts().await?;
        let mut plan = retention::plan(&facts);
        // Only what goes is measured: that reads every extent of a snapshot, and there may be thousands that stay.
        let going = plan.removals.iter().filter_map(|removal| standing_on.get(&removal.id).cloned());
        let own_bytes = self.measure(going.collect()).await?;
        for removal in &mut plan.removals {
            let snapshot = standing_on.get(&removal.id);
            removal.own_bytes = snapshot.and_then(|id| own_bytes.get(id)).copied().unwrap_or_default();
        }
        Ok(plan)
    }

    /// Removes what was kept long enough, of all teams. One thing that cannot be removed does not keep the others.
    ///
    /// # Errors
    /// [`CollectError`]; nothing was removed then.
    #[tracing::instrument(name = "collect", skip_all)]
    pub async fn collect(&self) -> Result<Collected, CollectError> {
        let _alone = self.inner.node.collecting.lock().await;
        let Plan { removals, in_use } = self.plan_collection().await?;
        let mut collected = Collected { in_use, ..Collected::default() };
        for removal in removals {
            let what = removal.what;
            match self.remove(&removal).await {
                Ok(true) => {
                    let Removal { id, name, team, own_bytes, .. } = &removal;
                    tracing::info!(%what, id, name, team, own_bytes, reason = removal.reason(), "removed");
                    collected.removed.push(removal);
                }
                Ok(false) => {
                    let why = match what {
                        What::Sandbox => "it was resumed meanwhile",
                        What::Snapshot => "it was taken anew meanwhile",
                    };
                    collected.skipped.push(Skipped { removal, why: why.to_owned() });
                }
                Err(error) => {
                    let why = chain(&error);
                    tracing::error!(%what, id = removal.id, why, "what was kept long enough could not be removed");
                    collected.skipped.push(Skipped { removal, why });
                }
            }
        }
        Ok(collected)
    }

    async fn remove(&self, removal: &Removal) -> Result<bool, LifecycleError> {
        let (team, paused_at) = (&removal.team_id, removal.since);
        match removal.what {
            What::Snapshot => self.delete_taken_at(team, &removal.id, removal.since).await,
            What::Sandbox => {
                // The plan's ids come from sandboxes; one that cannot be read is none.
                let Ok(id) = removal.id.parse::<SandboxId>() else { return Ok(false) };
                match self.ask(team, &id, |reply| Operation::Forget { paused_at, reply }).await {
                    // Killed meanwhile: that is what was wanted.
                    Err(LifecycleError::NotFound(_)) => Ok(true),
                    outcome => outcome,
                }
            }
        }
    }

    /// The facts, and the snapshot in the vault behind the id of each sandbox and snapshot that has one.
    async fn facts(&self) -> Result<(Facts, HashMap<String, SnapshotId>), CollectError> {
        let node = &self.inner.node;
        let teams = node.registry.teams().await?;
        let rows: Vec<_> = {
            let entries = self.inner.entries.read().unwrap_or_else(|poisoned| poisoned.into_inner());
            let statuses = entries.values().map(|entry| entry.status.borrow());
            statuses
                .filter(|status| !status.gone)
                .map(|status| (status.row.clone(), status.durable))
                .collect()
        };
        let taken = node.registry.snapshots().await?;
        let of_sandboxes = rows.iter().map(|(row, _)| (row.id.to_string(), &row.snapshot_id));
        let of_snapshots = taken.iter().map(|row| (row.id.to_string(), &row.snapshot_id));
        let standing_on = of_sandboxes.chain(of_snapshots);
        let standing_on = standing_on.filter_map(|(id, snapshot)| Some((id, snapshot.clone()?))).collect();
        let mut snapshots = Vec::new();
        for row in taken {
            snapshots.push(SnapshotFacts {
                id: row.id.clone(),
                team: row.team_id.clone(),
                taken_at: row.created_at,
                name: self.snapshot_view(row).await?.id,
            });
        }
        let sandboxes = rows.into_iter().map(|(row, durable)| SandboxFacts {
            id: row.id.clone(),
            team: row.team_id.clone(),
            origin: row.record.template_id.clone(),
            paused_at: (row.state == StoredState::Paused && durable).then_some(row.record.end_at),
            retention_days: row.record.retention_days,
        });
        let facts = Facts {
            now: jiff::Timestamp::now(),
            retention: node.retention,
            teams: teams
                .into_iter()
                .map(|team| TeamFacts { id: team.id, name: team.name, limits: team.limits })
                .collect(),
            sandboxes: sandboxes.collect(),
            snapshots,
        };
        Ok((facts, standing_on))
    }

    /// Bytes that each snapshot shares with no other; one that cannot be measured (it is gone by now) has no entry.
    async fn measure(&self, ids: Vec<SnapshotId>) -> Result<HashMap<SnapshotId, u64>, CollectError> {
        let vault = self.inner.node.vault.clone();
        let measuring = move || {
            let measured = ids.into_iter().filter_map(|id| {
                let own = vault.get(&id).and_then(|snapshot| snapshot.own_bytes());
                own.inspect_err(|error| tracing::debug!(%error, "a snapshot cannot be measured"))
                    .ok()
                    .map(|b| (id, b))
            });
            measured.collect()
        };
        Ok(tokio::task::spawn_blocking(measuring).await?)
    }

    /// Fills in until when paused sandboxes of `team` are kept.
    pub(super) async fn tell_how_long_kept(&self, team: &TeamId, views: &mut [SandboxView]) {
        let node = &self.inner.node;
        let limits = match node.registry.team(team).await {
            Ok(team) => team.map(|team| team.limits).unwrap_or_default(),
            Err(error) => return tracing::warn!(%error, "how long a team keeps its sandboxes is not known"),
        };
        for view in views.iter_mut().filter(|view| view.state == VisibleState::Paused) {
            let (days, _) = node.retention.of_paused(&limits, view.retention_days);
            view.kept_until = retention::kept_until(view.end_at, days);
        }
    }
}

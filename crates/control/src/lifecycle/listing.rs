//! Sandboxes as clients see them: all of a team, cheaply, and those that are shown, in full.
//!
//! A team may have thousands of paused sandboxes, and a page of a list shows a hundred. So a list is picked from
//! [`Listed`]s, which cost a reference each, and only what was picked is described.

use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use torpor_types::TeamId;

use super::api::{OnTimeout, SandboxView, VisibleState};
use super::node::Node;
use super::{Sandboxes, Status};
use crate::registry::{SandboxRecord, SandboxRow};

/// A sandbox that a list may show.
#[derive(Debug, Clone)]
pub struct Listed {
    row: Arc<SandboxRow>,
    state: VisibleState,
    durable: bool,
    held_up: Option<String>,
}

// === impl Sandboxes ===

impl Sandboxes {
    /// All sandboxes of a team, in no order. Killed and expired ones are never among them.
    pub fn list(&self, team: &TeamId) -> Vec<Listed> {
        let now = Timestamp::now();
        let entries = self.inner.entries.read().unwrap_or_else(PoisonError::into_inner);
        let visible = entries.values().map(|entry| entry.status.borrow());
        let visible = visible.filter(|status| status.row.team_id == *team && status.is_visible(now));
        visible.map(|status| status.listed()).collect()
    }

    /// Describes sandboxes of a team that were listed, in the order given.
    pub async fn describe(&self, team: &TeamId, listed: &[Listed]) -> Vec<SandboxView> {
        let mut views: Vec<_> = listed.iter().map(|listed| listed.view(&self.inner.node)).collect();
        self.tell_how_long_kept(team, &mut views).await;
        views
    }
}

// === impl Status ===

impl Status {
    fn listed(&self) -> Listed {
        Listed {
            row: self.row.clone(),
            state: self.visible_state(),
            durable: self.durable,
            held_up: self.held_up.clone(),
        }
    }

    pub(super) fn view(&self, node: &Node) -> SandboxView {
        self.listed().view(node)
    }
}

// === impl Listed ===

impl Listed {
    /// The sandbox's row.
    pub(crate) fn row(&self) -> &SandboxRow {
        &self.row
    }

    /// Running or paused.
    pub(crate) fn state(&self) -> VisibleState {
        self.state
    }

    fn view(&self, node: &Node) -> SandboxView {
        let record: &SandboxRecord = &self.row.record;
        SandboxView {
            id: self.row.id.clone(),
            template_id: record.template_id.clone(),
            template_name: record.template_name.clone(),
            state: self.state,
            started_at: record.started_at,
            end_at: record.end_at,
            shape: record.shape,
            envd_version: record.envd_version.clone(),
            access_token: node.access_token(&self.row),
            traffic_token: node.traffic_token(&self.row),
            metadata: record.metadata.clone(),
            on_timeout: if record.pause_on_timeout { OnTimeout::Pause } else { OnTimeout::Kill },
            filesystem_only: record.filesystem_only,
            auto_resume: record.auto_resume,
            allow_internet: record.allow_internet,
            network: record.network.clone(),
            idle_timeout_s: record.idle_timeout_s,
            retention_days: record.retention_days,
            kept_until: None,
            held_up: self.held_up.clone(),
            durable: self.durable,
        }
    }
}

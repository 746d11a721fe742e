//! What idle machines rehearse: the template whose shape they have.

use std::error::Error;
use std::time::Duration;

use torpor_machine::{HostFacts, LoadSource, Rehearsal};
use torpor_network::Connector;
use torpor_types::SnapshotId;
use torpor_vault::Vault;

use super::launch::open;
use super::{guest, node::Node};
use crate::registry::TemplateRow;

/// How long it may take: a guest that takes longer is not worth it.
const LIMIT: Duration = Duration::from_secs(60);

/// A template's snapshot.
#[derive(Debug)]
pub(super) struct TemplateRehearsal {
    template: String,
    snapshot: SnapshotId,
    vault: Vault,
    host: HostFacts,
}

// === impl TemplateRehearsal ===

impl TemplateRehearsal {
    pub(super) fn new(node: &Node, template: &TemplateRow) -> Self {
        Self {
            template: template.name.clone(),
            snapshot: template.snapshot_id.clone(),
            vault: node.vault.clone(),
            host: node.machines.facts().clone(),
        }
    }
}

#[async_trait::async_trait]
impl Rehearsal for TemplateRehearsal {
    fn name(&self) -> &str {
        self.snapshot.as_str()
    }

    async fn open(&self) -> Result<LoadSource, Box<dyn Error + Send + Sync>> {
        let (vault, id) = (self.vault.clone(), self.snapshot.clone());
        let snapshot = tokio::task::spawn_blocking(move || vault.get(&id)).await??;
        // Removed meanwhile, it stays readable as long as it is open.
        Ok(open(self.host.clone(), snapshot, serde_json::Value::Null).await?)
    }

    /// What every sandbox is told at its start, and a command as the SDKs start one.
    async fn play(&self, connector: &Connector) -> Result<(), Box<dyn Error + Send + Sync>> {
        let played = async {
            guest::init_for_rehearsal(connector).await?;
            guest::run_for_rehearsal(connector).await
        };
        let played = tokio::time::timeout(LIMIT, played).await;
        played.map_err(|_| {
            format!("template '{}' did not answer within {} s", self.template, LIMIT.as_secs())
        })??;
        Ok(())
    }
}

//! Making rows again that the database lost, from the manifests of the snapshots in the vault.
//!
//! Every snapshot's manifest holds its owner's record: a template, a paused sandbox, or a snapshot that a user took. A
//! starting server makes lost rows of sandboxes and snapshots again by itself (see [`reconcile`](super::reconcile)); [`rebuild_index`]
//! does all three kinds, for a database that is gone. A row that exists is left as it is, so doing it twice does no more
//! than doing it once.
//!
//! What no manifest holds cannot be made again: API keys, teams (what was theirs is the default team's), and the secret
//! from which sandboxes' access tokens are derived, so that sandboxes have new ones.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use torpor_types::{Shape, SnapshotId, TemplateId};
use torpor_vault::{ListError, Snapshot, Vault};

use super::save::Owner;
use crate::keys::DEFAULT_TEAM;
use crate::registry::{Registry, RegistryError, SandboxRow, SnapshotRow, StoredState, TemplateRow};

/// What became of each snapshot in the vault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebuilt {
    /// Rows that were made.
    pub made: Vec<Made>,
    /// Snapshots that a row named already, or a newer one of the same owner replaced.
    pub known: usize,
    /// Snapshots whose owner cannot be told: of a fork, which has no row.
    pub without_owner: Vec<SnapshotId>,
    /// Snapshots whose manifest cannot be read, and why.
    pub unreadable: Vec<Unreadable>,
}

/// A row that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    /// Of which table.
    pub kind: MadeKind,
    /// The row's id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// From which snapshot in the vault.
    pub snapshot: SnapshotId,
}

/// Of what a row was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MadeKind {
    /// A template.
    Template,
    /// A paused sandbox.
    Sandbox,
    /// A snapshot that a user took.
    Snapshot,
}

/// A snapshot whose manifest cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Which.
    pub id: SnapshotId,
    /// Why.
    pub why: String,
}

/// The rows could not be made again. Those that were stay, and doing it again makes the others.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The database did not do as asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The vault cannot be listed.
    #[error(transparent)]
    Vault(#[from] ListError),
}

/// What of a template's record in a manifest its row has.
#[derive(Debug, Deserialize)]
struct TemplateOwner {
    template_id: TemplateId,
    name: String,
    shape: Shape,
}

/// Makes the rows again that `registry` lacks and a manifest in `vault` tells of. No server may run.
///
/// # Errors
/// [`RebuildError`].
pub async fn rebuild_index(registry: &Registry, vault: &Vault) -> Result<Rebuilt, RebuildError> {
    let listing = vault.list()?;
    let mut rebuilt = Rebuilt {
        unreadable: listing
            .unreadable
            .iter()
            .map(|(id, error)| Unreadable { id: id.clone(), why: error.to_string() })
            .collect(),
        ..Rebuilt::default()
    };
    let mut templates: HashSet<String> =
        registry.templates().await?.into_iter().map(|template| template.name).collect();
    let mut sandboxes: HashSet<_> = registry.sandboxes().await?.into_iter().map(|row| row.id).collect();
    let mut snapshots: HashSet<_> = registry.snapshots().await?.into_iter().map(|row| row.id).collect();
    // The newest first: of several of one owner it is the one that counts.
    for snapshot in listing.snapshots.iter().rev() {
        let made = |kind, id: String, name: String| Made { kind, id, name, snapshot: snapshot.id().clone() };
        if let Some(template) = template_row(snapshot) {
            if templates.insert(template.name.clone()) {
                registry.publish_template(&template).await?;
                rebuilt.made.push(made(MadeKind::Template, template.id.into(), template.name));
                continue;
            }
        } else if let Some(owner) = Owner::of(snapshot) {
            if sandboxes.insert(owner.id.clone()) {
                let row = sandbox_row(registry, owner, snapshot).await?;
                registry.insert_sandbox(&row).await?;
                rebuilt.made.push(made(MadeKind::Sandbox, row.id.to_string(), row.record.template_name));
                continue;
            }
        } else if let Some(row) = taken_by_user(snapshot) {
            if snapshots.insert(row.id.clone()) {
                let row = snapshot_row(registry, row, snapshot).await?;
                registry.put_snapshot(&row).await?;
                rebuilt.made.push(made(MadeKind::Snapshot, row.id.into(), row.name.unwrap_or_default()));
                continue;
            }
        } else {
            rebuilt.without_owner.push(snapshot.id().clone());
            continue;
        }
        rebuilt.known += 1;
    }
    Ok(rebuilt)
}

/// The row of a paused sandbox, as its pause's manifest tells.
pub(super) async fn sandbox_row(
    registry: &Registry,
    owner: Owner,
    pause: &Snapshot,
) -> Result<SandboxRow, RegistryError> {
    Ok(SandboxRow {
        id: owner.id,
        // With the database the team may be lost too: then it is the default team's.
        team_id: registry.team_or_default(&owner.team_id, DEFAULT_TEAM).await?,
        state: StoredState::Paused,
        machine_id: None,
        snapshot_id: Some(pause.id().clone()),
        record: owner.record,
    })
}

/// The row of a snapshot that a user took, from what [`taken_by_user`] found.
pub(super) async fn snapshot_row(
    registry: &Registry,
    mut row: SnapshotRow,
    snapshot: &Snapshot,
) -> Result<SnapshotRow, RegistryError> {
    row.team_id = registry.team_or_default(&row.team_id, DEFAULT_TEAM).await?;
    row.snapshot_id = Some(snapshot.id().clone());
    Ok(row)
}

/// The record of the user's snapshot that this is; `None` if it is something else.
pub(super) fn taken_by_user(snapshot: &Snapshot) -> Option<SnapshotRow> {
    serde_json::from_value(snapshot.manifest().subject.get("snapshot")?.clone()).ok()
}

fn template_row(snapshot: &Snapshot) -> Option<TemplateRow> {
    let manifest = snapshot.manifest();
    let owner: TemplateOwner = serde_json::from_value(manifest.subject.get("template")?.clone()).ok()?;
    Some(TemplateRow {
        id: owner.template_id,
        name: owner.name,
        snapshot_id: manifest.id.clone(),
        shape: owner.shape,
        envd_version: manifest.machine.agent_version.clone(),
        created_at: manifest.created_at,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use torpor_vault::Manifest;

    use super::*;
    use crate::registry::SandboxRecord;

    /// The vault's test of the same files has what they are; here is what their owners wrote.
    fn subject(name: &str) -> serde_json::Value {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vault/fixtures/manifests");
        Manifest::from_json(&std::fs::read(dir.join(name)).unwrap()).unwrap().subject
    }

    #[test]
    fn sandboxes_templates_and_snapshots_of_every_earlier_format_are_known_again() {
        for name in ["1.0-pause.json", "1.0-filesystem-only.json", "1.1-pause.json"] {
            let owner: Owner = serde_json::from_value(subject(name)["sandbox"].clone()).unwrap();
            let SandboxRecord { template_name, metadata, filesystem_only, .. } = owner.record;
            assert_eq!((template_name.as_str(), metadata["project"].as_str()), ("base", "golden"), "{name}");
            assert_eq!(filesystem_only, name.contains("filesystem"), "{name}");
        }
        let owner: TemplateOwner =
            serde_json::from_value(subject("1.0-template.json")["template"].clone()).unwrap();
        assert_eq!((owner.name.as_str(), owner.shape.memory_mib), ("base", 512));
        let row: SnapshotRow =
            serde_json::from_value(subject("1.1-snapshot.json")["snapshot"].clone()).unwrap();
        assert_eq!(
            (row.name.as_deref(), row.record.metadata["project"].as_str()),
            (Some("golden"), "golden")
        );
    }

    #[test]
    fn a_record_with_fields_of_a_later_version_is_read_without_them() {
        let mut sandbox = subject("1.1-pause.json")["sandbox"].clone();
        sandbox["colour"] = "blue".into();
        sandbox["record"]["colour"] = "blue".into();
        sandbox["record"]["network"]["egress"]["colour"] = "blue".into();
        serde_json::from_value::<Owner>(sandbox).unwrap();
    }
}

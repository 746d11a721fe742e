//! Snapshots that users take of their sandboxes, and forks: one sandbox becomes many.
//!
//! Both copy a running sandbox, which goes on (see `actor::snapshot`). A snapshot has a row, so that sandboxes can be made from it
//! until it is deleted; a fork's copy has none, and goes when no child stands on it any more.

use futures::StreamExt;
use jiff::Timestamp;
use serde_json::json;
use torpor_types::{SandboxId, TeamId, TemplateId};
use torpor_vault::interruption;

use super::actor::{self, Operation};
use super::api::{LifecycleError, SandboxView, SnapshotView};
use super::origin::{self, DEFAULT_TAG, Reference, slug};
use super::save::Keep;
use super::{Sandboxes, deadline};
use crate::registry::{SandboxRow, SnapshotRow};

/// Children that are started at a time.
const CHILDREN_AT_ONCE: usize = 4;
/// The longest name, and the longest tag.
const MAX_NAME_CHARS: usize = 128;

// === impl Sandboxes ===

impl Sandboxes {
    /// Takes a snapshot of a running sandbox, and answers when it is durable. One of a name that the team has already
    /// replaces it: the id stays. Without memory, sandboxes made of it boot.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`] (also for a paused one), [`LifecycleError::InTransition`] while it is being paused
    /// or copied, [`LifecycleError::InvalidName`],
    /// [`LifecycleError::NoRoom`], [`LifecycleError::Failed`] (the sandbox runs on).
    pub async fn snapshot(
        &self,
        team: &TeamId,
        id: &SandboxId,
        name: Option<&str>,
        keep_memory: bool,
    ) -> Result<SnapshotView, LifecycleError> {
        self.require_at_rest(team, id)?;
        let node = &self.inner.node;
        let (name, tag) = match name {
            Some(name) => self.checked_name(team, name).await.map(|(name, tag)| (Some(name), tag))?,
            None => (None, DEFAULT_TAG.to_owned()),
        };
        // Two of one new name must not get two ids.
        let _naming = node.naming.lock().await;
        let before = match &name {
            Some(name) => node.registry.snapshot_named(team, name, &tag).await?,
            None => None,
        };
        let mut row = SnapshotRow {
            id: before.as_ref().map_or_else(TemplateId::random, |before| before.id.clone()),
            team_id: team.clone(),
            name,
            tag,
            snapshot_id: None,
            source: id.clone(),
            record: self.row(team, id)?.record.clone(),
            created_at: Timestamp::now(),
        };
        let keep = if keep_memory { Keep::Everything } else { Keep::Disk };
        let subject = json!({ "snapshot": row });
        let base = self.ask(team, id, |reply| Operation::Snapshot { keep, subject, reply }).await?;
        interruption::step("snapshot.1");
        row.snapshot_id = Some(base.id().clone());
        if let Err(error) = node.registry.put_snapshot(&row).await {
            node.bases.release(base.id().clone()).await;
            return Err(error.into());
        }
        interruption::step("snapshot.2");
        if let Some(replaced) = before.and_then(|before| before.snapshot_id) {
            node.bases.release(replaced).await;
        }
        self.snapshot_view(row).await
    }

    /// The team's snapshots, the newest first; of one sandbox, or of one name, if asked for.
    ///
    /// # Errors
    /// [`LifecycleError::Registry`].
    pub async fn snapshots(
        &self,
        team: &TeamId,
        source: Option<&SandboxId>,
        name: Option<&str>,
    ) -> Result<Vec<SnapshotView>, LifecycleError> {
        let mut views = Vec::new();
        for row in self.inner.node.registry.snapshots().await? {
            let wanted = row.team_id == *team
                && source.is_none_or(|source| row.source == *source)
                && name.is_none_or(|name| {
                    let asked = Reference::read(name);
                    row.name.as_deref() == Some(asked.name) && (!name.contains(':') || row.tag == asked.tag)
                });
            if wanted {
                views.push(self.snapshot_view(row).await?);
            }
        }
        Ok(views)
    }

    /// Deletes a snapshot by its id or name.
    ///
    /// # Errors
    /// [`LifecycleError::TemplateNotFound`], [`LifecycleError::SnapshotInUse`] while sandboxes made from it exist.
    pub async fn delete_snapshot(&self, team: &TeamId, asked: &str) -> Result<(), LifecycleError> {
        let node = &self.inner.node;
        let _naming = node.naming.lock().await;
        let Some(row) = origin::snapshot(node, team, asked).await? else {
            return Err(LifecycleError::TemplateNotFound { asked: asked.to_owned(), known: Vec::new() });
        };
        self.delete_row(row, asked).await
    }

    /// Deletes the team's snapshot `id` if it is still the one taken at `taken_at`; says whether it was.
    ///
    /// # Errors
    /// [`LifecycleError::SnapshotInUse`], [`LifecycleError::Registry`].
    pub(super) async fn delete_taken_at(
        &self,
        team: &TeamId,
        id: &str,
        taken_at: Timestamp,
    ) -> Result<bool, LifecycleError> {
        let node = &self.inner.node;
        let _naming = node.naming.lock().await;
        match node.registry.snapshot(team, id).await? {
            Some(row) if row.created_at == taken_at => self.delete_row(row, id).await.map(|()| true),
            Some(_) | None => Ok(false),
        }
    }

    /// Call it with `naming` locked.
    async fn delete_row(&self, row: SnapshotRow, asked: &str) -> Result<(), LifecycleError> {
        let node = &self.inner.node;
        let users = node.registry.sandboxes().await?;
        let users = users.into_iter().filter(|user| user.record.template_id == row.id).map(|user| user.id);
        let sandboxes: Vec<SandboxId> = users.collect();
        if !sandboxes.is_empty() {
            return Err(LifecycleError::SnapshotInUse { asked: asked.to_owned(), sandboxes });
        }
        // The row goes last: a snapshot without a row is taken for one whose row was lost.
        if let Some(snapshot) = row.snapshot_id {
            node.bases.release(snapshot).await;
        }
        interruption::step("delete.1");
        Ok(node.registry.delete_snapshot(&row.id).await?)
    }

    /// Makes `count` new sandboxes that go on where a running one is, which itself goes on unchanged. Each child has
    /// an id, a token, entropy and a clock of its own, and succeeds or fails on its own.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`], [`LifecycleError::NotRunning`], [`LifecycleError::InTransition`] while it is being
    /// paused or copied, a timeout out of range,
    /// [`LifecycleError::NoRoom`], [`LifecycleError::Failed`] (no child was made, the sandbox runs on).
    pub async fn fork(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        count: usize,
    ) -> Result<Vec<Result<SandboxView, LifecycleError>>, LifecycleError> {
        let (node, entries) = (&self.inner.node, &self.inner.entries);
        deadline::check_timeout(timeout_s, node.limits(team).await?.max_timeout_s)?;
        self.require_at_rest(team, id)?;
        let record = self.row(team, id)?.record.clone();
        // Asked before the sandbox is stopped for it; each child claims its own when it is started.
        drop(node.claim_room(actor::ROOM_BYTES.saturating_mul(count as u64)).await?);
        let (keep, subject) = (Keep::Everything, json!({ "fork": { "of": id } }));
        let copied = self.ask(team, id, |reply| Operation::Snapshot { keep, subject, reply }).await;
        let base = copied.map_err(|error| match error {
            LifecycleError::Paused(id) => LifecycleError::NotRunning(id),
            other => other,
        })?;
        interruption::step("fork.1");
        let children = futures::stream::iter(0..count).map(|_| {
            actor::start(
                node,
                entries,
                team.clone(),
                SandboxId::random(),
                record.clone(),
                base.id(),
                timeout_s,
            )
        });
        let children = children.buffered(CHILDREN_AT_ONCE).collect::<Vec<_>>().await;
        interruption::step("fork.2");
        // From here on it lives as long as children stand on it.
        node.bases.release(base.id().clone()).await;
        drop(base);
        Ok(children.into_iter().map(|child| child.map(|status| status.view(node))).collect())
    }

    /// What the table of section 7.2 answers 409: a change in the middle of another.
    pub(super) fn require_at_rest(&self, team: &TeamId, id: &SandboxId) -> Result<(), LifecycleError> {
        let is_at_rest = self.entry(team, id)?.status.borrow().is_at_rest();
        if is_at_rest { Ok(()) } else { Err(LifecycleError::InTransition(id.clone())) }
    }

    fn row(&self, team: &TeamId, id: &SandboxId) -> Result<std::sync::Arc<SandboxRow>, LifecycleError> {
        Ok(self.entry(team, id)?.status.borrow().row.clone())
    }

    /// The name and the tag of a new snapshot.
    async fn checked_name(&self, team: &TeamId, text: &str) -> Result<(String, String), LifecycleError> {
        let invalid = |why: String| LifecycleError::InvalidName { name: text.to_owned(), why };
        let Reference { team: named, name, tag } = Reference::read(text);
        let is_plain = |text: &str, more: &[u8]| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b);
            (1..=MAX_NAME_CHARS).contains(&text.len()) && text.bytes().all(allowed)
        };
        if !is_plain(name, b"-_") {
            return Err(invalid("a name has lower-case letters, digits, '-' and '_'".to_owned()));
        }
        if !is_plain(tag, b"-_.") {
            return Err(invalid("a tag has lower-case letters, digits, '-', '_' and '.'".to_owned()));
        }
        let registry = &self.inner.node.registry;
        let own = registry.team(team).await?.map(|team| slug(&team.name)).unwrap_or_default();
        if named.is_some_and(|named| named != own) {
            return Err(invalid(format!("your team's names begin with '{own}/'")));
        }
        if registry.template(name).await?.is_some() || registry.snapshot(team, name).await?.is_some() {
            return Err(invalid("a template or a snapshot goes by it already".to_owned()));
        }
        Ok((name.to_owned(), tag.to_owned()))
    }

    pub(super) async fn snapshot_view(&self, row: SnapshotRow) -> Result<SnapshotView, LifecycleError> {
        let team =
            self.inner.node.registry.team(&row.team_id).await?.map(|team| team.name).unwrap_or_default();
        let names: Vec<String> =
            row.name.iter().map(|name| format!("{}/{name}:{}", slug(&team), row.tag)).collect();
        let id = names.first().cloned().unwrap_or_else(|| format!("{}:{}", row.id, row.tag));
        Ok(SnapshotView { id, names, created_at: row.created_at })
    }
}

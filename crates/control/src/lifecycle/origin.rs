//! What a new sandbox starts from: a template, or a snapshot somebody took of a sandbox.
//!
//! Both are asked for by the same field and in the same words (protocol section 1.2):
//!
//! ```text
//! base   base:default   tabc…   tabc…:default     a template, or a snapshot by its id
//! name   name:tag   team/name   team/name:tag     a snapshot by its name; without a tag `default` is meant
//! ```

use std::collections::BTreeMap;

use torpor_types::{Shape, SnapshotId, TeamId, TemplateId};

use super::api::LifecycleError;
use super::node::Node;
use crate::registry::SnapshotRow;

/// The tag of what was given none.
pub(super) const DEFAULT_TAG: &str = "default";
/// Another word for it, which templates understand too.
const LATEST_TAG: &str = "latest";

/// A starting point.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) template_id: TemplateId,
    pub(super) template_name: String,
    pub(super) snapshot_id: SnapshotId,
    pub(super) shape: Shape,
    pub(super) envd_version: String,
    /// What every process has in its environment, unless the request says otherwise.
    pub(super) env_vars: BTreeMap<String, String>,
}

/// A name as clients write it, in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    /// The team, as in `team/name`.
    pub(super) team: Option<&'a str>,
    pub(super) name: &'a str,
    pub(super) tag: &'a str,
}

// === impl Origin ===

impl Origin {
    /// The template or snapshot that `team` means by `asked`.
    pub(super) async fn find(node: &Node, team: &TeamId, asked: &str) -> Result<Origin, LifecycleError> {
        let reference = Reference::read(asked);
        let template = match reference {
            Reference { team: None, name, tag: DEFAULT_TAG | LATEST_TAG } => {
                node.registry.template(name).await?
            }
            _ => None,
        };
        if let Some(template) = template {
            node.keep_warm(&template);
            return Ok(Origin {
                template_id: template.id,
                template_name: template.name,
                snapshot_id: template.snapshot_id,
                shape: template.shape,
                envd_version: template.envd_version,
                env_vars: BTreeMap::new(),
            });
        }
        if let Some(SnapshotRow { id, name, snapshot_id: Some(snapshot_id), record, .. }) =
            snapshot(node, team, asked).await?
        {
            return Ok(Origin {
                template_id: id,
                template_name: name.unwrap_or(record.template_name),
                snapshot_id,
                shape: record.shape,
                envd_version: record.envd_version,
                env_vars: record.env_vars,
            });
        }
        let known = node.registry.templates().await?.into_iter().map(|template| template.name).collect();
        Err(LifecycleError::TemplateNotFound { asked: asked.to_owned(), known })
    }
}

/// The snapshot that `team` means by `asked`; `None` if it has no such.
pub(super) async fn snapshot(
    node: &Node,
    team: &TeamId,
    asked: &str,
) -> Result<Option<SnapshotRow>, LifecycleError> {
    let Reference { team: named_team, name, tag } = Reference::read(asked);
    if let Some(named) = named_team {
        let own = node.registry.team(team).await?;
        if own.is_none_or(|own| slug(&own.name) != named) {
            return Ok(None);
        }
    } else if let Some(found) = node.registry.snapshot(team, name).await?
        && found.tag == tag
    {
        return Ok(Some(found));
    }
    Ok(node.registry.snapshot_named(team, name, tag).await?)
}

/// A team's name as it stands in names of snapshots: lower-case letters, digits and dashes.
pub(super) fn slug(name: &str) -> String {
    let dashed: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    dashed.trim_matches('-').to_owned()
}

// === impl Reference ===

impl<'a> Reference<'a> {
    pub(super) fn read(text: &'a str) -> Reference<'a> {
        let (team, rest) = match text.split_once('/') {
            Some((team, rest)) => (Some(team), rest),
            None => (None, text),
        };
        let (name, tag) = rest.split_once(':').unwrap_or((rest, DEFAULT_TAG));
        Reference { team, name, tag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_with_and_without_its_team_and_tag() {
        let reference = |team, name, tag| Reference { team, name, tag };
        assert_eq!(Reference::read("base"), reference(None, "base", "default"));
        assert_eq!(Reference::read("tabc:default"), reference(None, "tabc", "default"));
        assert_eq!(Reference::read("my-team/x:v1.2"), reference(Some("my-team"), "x", "v1.2"));
        assert_eq!(Reference::read(""), reference(None, "", "default"));
    }

    #[test]
    fn a_team_of_any_name_has_a_slug() {
        assert_eq!(slug("Agents & Co"), "agents---co");
        assert_eq!(slug("default"), "default");
    }
}

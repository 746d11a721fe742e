//! Teams: whose keys and sandboxes are whose.
//!
//! A key opens the sandboxes of its team and no others; to any other team they do not exist. A node starts with one
//! team, [`DEFAULT_TEAM`](crate::keys::DEFAULT_TEAM), which is all that most ever need.

use crate::registry::{Registry, RegistryError, TeamLimits, TeamRow};

/// Characters a team's name may have at most.
const MAX_NAME_CHARS: usize = 63;

/// A team was not made, found or changed.
#[derive(Debug, thiserror::Error)]
pub enum TeamError {
    /// The database failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is a team of that name.
    #[error("there is a team '{0}' already")]
    Exists(String),
    /// There is no team of that name.
    #[error("there is no team '{asked}'. Teams here: {known}. `torpor team create {asked}` makes one")]
    NotFound {
        /// What was asked for.
        asked: String,
        /// Names of the teams there are.
        known: String,
    },
    /// The name cannot be one.
    #[error("'{0}' cannot be a team's name: it has 1 to 63 lower-case letters, digits, '-' and '_'")]
    InvalidName(String),
}

/// Makes a team.
pub async fn create(registry: &Registry, name: &str, limits: TeamLimits) -> Result<TeamRow, TeamError> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.bytes().all(fits) {
        return Err(TeamError::InvalidName(name.chars().take(80).collect()));
    }
    let mut team = registry.create_team(name).await?.ok_or_else(|| TeamError::Exists(name.to_owned()))?;
    if limits != TeamLimits::default() {
        registry.set_team_limits(&team.id, limits).await?;
        team.limits = limits;
    }
    Ok(team)
}

/// The team of that name. The default team is made when it is asked for first.
pub async fn find(registry: &Registry, name: &str) -> Result<TeamRow, TeamError> {
    if name == crate::keys::DEFAULT_TEAM {
        return Ok(registry.team_named(name).await?);
    }
    match registry.team_by_name(name).await? {
        Some(team) => Ok(team),
        None => {
            let teams = registry.teams().await?;
            let known = teams.into_iter().map(|team| team.name).collect::<Vec<_>>().join(", ");
            Err(TeamError::NotFound { asked: name.to_owned(), known })
        }
    }
}

/// Changes a team's limits: `change` gets those it has.
pub async fn change_limits(
    registry: &Registry,
    name: &str,
    change: impl FnOnce(TeamLimits) -> TeamLimits,
) -> Result<TeamRow, TeamError> {
    let mut team = find(registry, name).await?;
    team.limits = change(team.limits);
    registry.set_team_limits(&team.id, team.limits).await?;
    Ok(team)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn teams_are_made_found_and_limited_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let limits = TeamLimits { max_running: Some(3), ..TeamLimits::default() };
        let made = create(&registry, "research", limits).await.unwrap();
        assert_eq!(find(&registry, "research").await.unwrap(), made);
        assert!(matches!(create(&registry, "research", limits).await, Err(TeamError::Exists(_))));
        let changed = change_limits(&registry, "research", |limits| TeamLimits {
            max_timeout_hours: Some(1),
            ..limits
        });
        assert_eq!(changed.await.unwrap().limits, TeamLimits { max_timeout_hours: Some(1), ..limits });
        assert_eq!(find(&registry, "default").await.unwrap().limits, TeamLimits::default());
        let missing = find(&registry, "sales").await.unwrap_err().to_string();
        assert_eq!(
            missing,
            "there is no team 'sales'. Teams here: research, default. `torpor team create sales` makes one"
        );
    }

    #[tokio::test]
    async fn a_name_that_would_not_survive_a_url_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        for name in ["", "Research", "a b", "ü", "a/b", &"x".repeat(64)] {
            let refused = create(&registry, name, TeamLimits::default()).await;
            assert!(matches!(refused, Err(TeamError::InvalidName(_))), "{name}");
        }
    }
}

//! API keys: made here, shown once, stored as their SHA-256.
//!
//! A key is `e2b_` and 40 lower-case hex digits (160 random bits), the form every published SDK accepts. A key is
//! found by its hash, so that comparing takes the same time whatever was guessed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use torpor_types::TeamId;

use crate::registry::{KeyRow, Registry, RegistryError, TeamRow};

/// The team that owns every key of a node with one team.
pub const DEFAULT_TEAM: &str = "default";

/// Name of the key by which `torpor sandbox …` on the same host reaches the server.
pub const CLI_KEY_NAME: &str = "cli";

const PREFIX: &str = "e2b_";
const RANDOM_BYTES: usize = 20;

/// An API key in the clear. Neither `Debug` nor an error message shows it; [`ApiKey::reveal`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

/// A key was not made, or not revoked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The database failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No key has this id.
    #[error("there is no key '{0}' that could be revoked: `torpor key list` shows the ids")]
    NotFound(String),
    /// The file for the CLI's key cannot be read or written.
    #[error("cannot write the CLI's key to {path}: {source}")]
    CliKeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

// === impl ApiKey ===

impl ApiKey {
    /// A new key.
    pub fn generate() -> Self {
        Self(format!("{PREFIX}{}", hex::encode(rand::random::<[u8; RANDOM_BYTES]>())))
    }

    /// Takes what a client sent, whether or not it can be a key.
    pub fn from_client(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The key itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored of it: the SHA-256 of the whole key in lower-case hex.
    pub fn sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.0))
    }

    /// Enough to recognise it and not enough to guess it: `e2b_1234…cdef`. A text too short to hide anything in is
    /// not shown at all.
    pub fn mask(&self) -> String {
        let chars: Vec<char> = self.0.chars().collect();
        if chars.len() < 24 {
            return "(too short to be a key)".to_owned();
        }
        let head: String = chars[..8].iter().collect();
        let tail: String = chars[chars.len() - 4..].iter().collect();
        format!("{head}…{tail}")
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKey({})", self.mask())
    }
}

/// Makes a key for the default team. The key is returned once and cannot be had again.
pub async fn create(registry: &Registry, name: &str) -> Result<(ApiKey, KeyRow), KeyError> {
    create_for(registry, registry.team_named(DEFAULT_TEAM).await?, name).await
}

/// Makes a key for `team`. The key is returned once and cannot be had again.
pub async fn create_for(
    registry: &Registry,
    team: TeamRow,
    name: &str,
) -> Result<(ApiKey, KeyRow), KeyError> {
    let key = ApiKey::generate();
    let row = KeyRow {
        id: format!("k{}", hex::encode(rand::random::<[u8; 5]>())),
        team_id: team.id,
        name: name.to_owned(),
        sha256: key.sha256(),
        mask: key.mask(),
        created_at: Timestamp::now(),
        revoked_at: None,
    };
    registry.insert_key(&row).await?;
    Ok((key, row))
}

/// Makes the node's first key, if no key of a user is valid: set-up calls this and shows what it returns.
pub async fn create_first(registry: &Registry) -> Result<Option<(ApiKey, KeyRow)>, KeyError> {
    let keys = registry.keys().await?;
    if keys.iter().any(|key| key.revoked_at.is_none() && key.name != CLI_KEY_NAME) {
        return Ok(None);
    }
    create(registry, "first").await.map(Some)
}

/// Revokes a key by its id; it opens nothing from the next request on.
pub async fn revoke(registry: &Registry, id: &str) -> Result<(), KeyError> {
    match registry.revoke_key(id).await? {
        true => Ok(()),
        false => Err(KeyError::NotFound(id.to_owned())),
    }
}

/// Whose key this is; `None` if it is nobody's or was revoked.
pub async fn team_of(registry: &Registry, key: &ApiKey) -> Result<Option<TeamId>, RegistryError> {
    Ok(registry.valid_key_by_hash(&key.sha256()).await?.map(|row| row.team_id))
}

/// Where [`ensure_cli_key`] keeps the CLI's key.
pub fn cli_key_path(data_dir: &Path) -> PathBuf {
    data_dir.join("cli.key")
}

/// Reads the CLI's key; fails for anyone who may not read the data directory's secrets.
pub fn read_cli_key(data_dir: &Path) -> io::Result<ApiKey> {
    fs::read_to_string(cli_key_path(data_dir)).map(|text| ApiKey::from_client(&text))
}

/// Sees to it that `<data>/cli.key`, readable by its owner alone, holds a valid key, so that root on this host needs
/// no key of his own. The server calls it at each start. A key that no longer works is replaced, never repaired.
pub async fn ensure_cli_key(data_dir: &Path, registry: &Registry) -> Result<PathBuf, KeyError> {
    let path = cli_key_path(data_dir);
    if let Ok(key) = read_cli_key(data_dir)
        && team_of(registry, &key).await?.is_some()
    {
        return Ok(path);
    }
    for stale in registry.keys().await?.into_iter().filter(|key| key.name == CLI_KEY_NAME) {
        registry.revoke_key(&stale.id).await?;
    }
    let (key, _) = create(registry, CLI_KEY_NAME).await?;
    write_secret(&path, key.reveal())
        .map_err(|source| KeyError::CliKeyFile { path: path.clone(), source })?;
    Ok(path)
}

/// Replaces a file in one step by one that was never readable to others.
fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    let new = path.with_extension("key.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn every_sdk_accepts_the_form_of_a_generated_key_and_nothing_shows_it() {
        let key = ApiKey::generate();
        let hex = key.reveal().strip_prefix("e2b_").unwrap();
        assert_eq!(hex.len(), 40);
        assert!(hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        assert_ne!(key, ApiKey::generate());
        assert!(!format!("{key:?}").contains(&hex[4..36]));
        assert_eq!(key.mask(), format!("e2b_{}…{}", &hex[..4], &hex[36..]));
        assert_eq!(ApiKey::from_client("e2b_short").mask(), "(too short to be a key)");
    }

    #[tokio::test]
    async fn a_key_opens_its_team_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let (key, row) = create(&registry, "laptop").await.unwrap();
        assert_eq!(team_of(&registry, &key).await.unwrap(), Some(row.team_id.clone()));
        assert_eq!(team_of(&registry, &ApiKey::generate()).await.unwrap(), None);
        let stored = registry.keys().await.unwrap();
        assert_eq!(stored.len(), 1);
        assert!(!format!("{stored:?}").contains(key.reveal()), "the key itself must not be stored");

        revoke(&registry, &row.id).await.unwrap();
        assert_eq!(team_of(&registry, &key).await.unwrap(), None);
        assert!(matches!(revoke(&registry, &row.id).await, Err(KeyError::NotFound(_))));
    }

    #[tokio::test]
    async fn set_up_makes_a_first_key_once_and_again_only_if_all_were_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        ensure_cli_key(dir.path(), &registry).await.unwrap();
        let (_, first) = create_first(&registry).await.unwrap().unwrap();
        assert!(create_first(&registry).await.unwrap().is_none());
        revoke(&registry, &first.id).await.unwrap();
        assert!(create_first(&registry).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn the_clis_key_is_kept_while_it_works_replaced_when_not_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let path = ensure_cli_key(dir.path(), &registry).await.unwrap();
        let first = read_cli_key(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(team_of(&registry, &first).await.unwrap().is_some());

        ensure_cli_key(dir.path(), &registry).await.unwrap();
        assert_eq!(read_cli_key(dir.path()).unwrap(), first);

        let row = registry.keys().await.unwrap().remove(0);
        revoke(&registry, &row.id).await.unwrap();
        ensure_cli_key(dir.path(), &registry).await.unwrap();
        let second = read_cli_key(dir.path()).unwrap();
        assert_ne!(second, first);
        assert!(team_of(&registry, &second).await.unwrap().is_some());
    }
}

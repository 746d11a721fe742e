//! The setting: how machines have their RAM.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// How machines have their RAM. Snapshots are the same in both modes, so those made in one are resumed in the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum MemoryMode {
    /// Mapped private over the snapshot's memory file, by a library preloaded into QEMU: machines of one snapshot share
    /// what they do not write, and only what they wrote is saved.
    #[default]
    Private,
    /// A file of its own for each machine, in the vault, which QEMU maps shared: for hosts where nothing can be preloaded.
    Shared,
}

/// The setting is neither of the two.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no way for machines to have their memory: 'private' maps it over the snapshot's file (the default), 'shared' \
     gives each machine a file of its own"
)]
pub struct ParseMemoryModeError(String);

// === impl MemoryMode ===

impl MemoryMode {
    /// As it is written in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            MemoryMode::Private => "private",
            MemoryMode::Shared => "shared",
        }
    }
}

impl fmt::Display for MemoryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for MemoryMode {
    type Err = ParseMemoryModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "private" => Ok(MemoryMode::Private),
            "shared" => Ok(MemoryMode::Shared),
            other => Err(ParseMemoryModeError(other.to_owned())),
        }
    }
}

impl TryFrom<String> for MemoryMode {
    type Error = ParseMemoryModeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_read_as_it_is_written_and_any_other_word_is_refused_with_those_that_are_known() {
        for mode in [MemoryMode::Private, MemoryMode::Shared] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let error = "Shared".parse::<MemoryMode>().unwrap_err().to_string();
        assert!(["'Shared'", "'private'", "'shared'"].iter().all(|word| error.contains(word)), "{error}");
    }
}

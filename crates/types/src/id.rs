//! Identifiers: one newtype a kind, so that none is taken for another.
//!
//! All ids are lower-case letters and digits only. A `-` inside an id would break host names of the form
//! `{port}-{id}.{domain}`; upper case would not survive DNS.

use rand::Rng;
use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A text is not an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a {kind} id: {kind} ids have 1 to 64 lower-case letters and digits")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

fn random_id(prefix: char, random_chars: usize) -> String {
    let mut rng = rand::rng();
    let mut id = String::with_capacity(1 + random_chars);
    id.push(prefix);
    id.extend((0..random_chars).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    id
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| ALPHABET.contains(&b))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new id from 19 random characters (98 bits).
            pub fn random() -> Self {
                Self(random_id($prefix, 19))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                if is_id(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(ParseIdError { kind: $kind, text: text.chars().take(80).collect() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(
    /// Names a sandbox for its whole life, through every pause and resume.
    SandboxId, "sandbox", 'i'
);
id!(
    /// Names one machine: one QEMU process, its working disk, its namespace.
    MachineId, "machine", 'm'
);
id!(
    /// Names an immutable snapshot in the vault.
    SnapshotId, "snapshot", 's'
);
id!(
    /// Names a template; its builds are snapshots.
    TemplateId, "template", 't'
);
id!(
    /// Names a team: keys and sandboxes belong to one.
    TeamId, "team", 'g'
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_never_holds_what_a_host_name_cannot(text in "\\PC{0,80}") {
            if let Ok(id) = text.parse::<SandboxId>() {
                prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }

    #[test]
    fn random_ids_parse_back_and_differ() {
        let ids: std::collections::HashSet<SandboxId> = (0..1000).map(|_| SandboxId::random()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.as_str().parse::<SandboxId>().as_ref() == Ok(id)));
    }

    #[test]
    fn ids_with_dashes_capitals_or_nothing_are_refused() {
        for text in ["", "a-b", "Abc", "../x", &"a".repeat(65)] {
            assert!(text.parse::<SnapshotId>().is_err(), "{text}");
        }
    }
}

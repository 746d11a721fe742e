//! Domain names, and patterns of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::destination::shortened;

/// Longest name there is, in bytes without the dot at its end.
const MAX_NAME_BYTES: usize = 253;
/// Longest part of a name between two dots, in bytes.
const MAX_LABEL_BYTES: usize = 63;

/// A domain name in lower case without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

/// `example.com` is that name alone; `*.example.com` is every name below it, at any depth, without itself; `*` is every
/// name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DomainPattern {
    /// One name.
    Exact(DomainName),
    /// All names below one.
    Below(DomainName),
    /// All names.
    Any,
}

/// A text is no domain name, or no pattern of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no domain name: those are like example.com or *.example.com, of letters, digits, '-' and '_' (write other \
     scripts in Punycode)"
)]
pub struct ParseDomainError(String);

// === impl DomainName ===

impl DomainName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = ParseDomainError;

    fn from_str(text: &str) -> Result<Self, ParseDomainError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let mut last = "";
        let labels_are_good = name.split('.').all(|label| {
            last = label;
            let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=MAX_LABEL_BYTES).contains(&label.len())
                && label.bytes().all(good)
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
        // A name of digits only at its end could be read as an address by others.
        let numeric = last.bytes().all(|byte| byte.is_ascii_digit());
        if labels_are_good && !numeric && name.len() <= MAX_NAME_BYTES {
            Ok(Self(name.to_ascii_lowercase()))
        } else {
            Err(ParseDomainError(shortened(text)))
        }
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl DomainPattern ===

impl DomainPattern {
    /// Whether `name` is one of those meant.
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            DomainPattern::Exact(exact) => exact == name,
            DomainPattern::Below(parent) => {
                name.0.strip_suffix(&parent.0).is_some_and(|prefix| prefix.len() > 1 && prefix.ends_with('.'))
            }
            DomainPattern::Any => true,
        }
    }

    /// Orders patterns that match the same name: the greater means fewer names.
    pub(super) fn specificity(&self) -> (bool, usize) {
        match self {
            DomainPattern::Exact(name) => (true, name.0.len()),
            DomainPattern::Below(parent) => (false, parent.0.len()),
            DomainPattern::Any => (false, 0),
        }
    }
}

impl FromStr for DomainPattern {
    type Err = ParseDomainError;

    fn from_str(text: &str) -> Result<Self, ParseDomainError> {
        match text.strip_prefix('*') {
            Some("") => Ok(DomainPattern::Any),
            Some(rest) => {
                let wrong = || ParseDomainError(shortened(text));
                let parent = rest.strip_prefix('.').ok_or_else(wrong)?;
                parent.parse().map(DomainPattern::Below).map_err(|_| wrong())
            }
            None => text.parse().map(DomainPattern::Exact),
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DomainPattern::Exact(name) => name.fmt(f),
            DomainPattern::Below(parent) => write!(f, "*.{parent}"),
            DomainPattern::Any => f.write_str("*"),
        }
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = ParseDomainError;

    fn try_from(text: String) -> Result<Self, ParseDomainError> {
        text.parse()
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> String {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<DomainPattern>().unwrap().matches(&name.parse().unwrap())
    }

    #[test]
    fn a_wildcard_means_names_below_at_any_depth_and_nothing_else() {
        assert!(matches("*.example.com", "a.example.com"));
        assert!(matches("*.example.com", "A.b.EXAMPLE.com."));
        assert!(!matches("*.example.com", "example.com"));
        assert!(!matches("*.example.com", "badexample.com"));
        assert!(!matches("*.example.com", "example.com.evil.net"));
        assert!(!matches("example.com", "a.example.com"));
        assert!(matches("Example.com", "example.COM."));
        assert!(matches("*", "anything.at.all"));
    }

    proptest! {
        #[test]
        fn every_name_below_matches_and_no_name_beside(prefix in "[a-z0-9]{1,10}(\\.[a-z0-9]{1,10}){0,3}", glue in "[a-z0-9]{1,5}") {
            let below = format!("{prefix}.example.com");
            let beside = format!("{prefix}.{glue}example.com");
            prop_assert!(matches("*.example.com", &below));
            prop_assert!(!matches("*.example.com", &beside));
            prop_assert!(!matches("example.com", &below));
        }

        #[test]
        fn whatever_is_read_as_a_pattern_is_written_as_one(text in "\\PC{0,40}|(\\*\\.)?[a-zA-Z0-9.-]{1,40}") {
            if let Ok(pattern) = text.parse::<DomainPattern>() {
                prop_assert_eq!(pattern.to_string().parse::<DomainPattern>().unwrap(), pattern);
            }
        }
    }
}

//! Where traffic goes: an address, a block of addresses, or a domain.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::domain::{DomainPattern, ParseDomainError};

/// One or more addresses, written as they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Block {
    /// `8.8.8.8`.
    Address(IpAddr),
    /// `8.8.8.0/24`.
    Net(IpNet),
}

/// An entry of `allowOut`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// Addresses.
    Block(Block),
    /// Names.
    Domain(DomainPattern),
}

/// A text is neither an address nor a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither an IP address (192.0.2.7) nor a CIDR block (192.0.2.0/24)")]
pub struct ParseBlockError(pub(super) String);

/// A text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDestinationError {
    /// It looks like an address.
    #[error(transparent)]
    Block(#[from] ParseBlockError),
    /// It looks like a name.
    #[error(transparent)]
    Domain(#[from] ParseDomainError),
}

// === impl Block ===

impl Block {
    /// Every IPv4 address.
    pub const ALL: Block = Block::Net(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)));

    /// The block, if it is one of IPv4: the only kind a sandbox has a way to.
    pub fn v4(&self) -> Option<Ipv4Net> {
        match self {
            Block::Address(IpAddr::V4(address)) => Some(Ipv4Net::from(*address)),
            Block::Net(IpNet::V4(net)) => Some(net.trunc()),
            Block::Address(IpAddr::V6(_)) | Block::Net(IpNet::V6(_)) => None,
        }
    }
}

impl FromStr for Block {
    type Err = ParseBlockError;

    fn from_str(text: &str) -> Result<Self, ParseBlockError> {
        let net = || text.parse().map(Block::Net);
        text.parse().map(Block::Address).or_else(|_| net()).map_err(|_| ParseBlockError(shortened(text)))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Block::Address(address) => address.fmt(f),
            Block::Net(net) => net.fmt(f),
        }
    }
}

impl TryFrom<String> for Block {
    type Error = ParseBlockError;

    fn try_from(text: String) -> Result<Self, ParseBlockError> {
        text.parse()
    }
}

impl From<Block> for String {
    fn from(block: Block) -> String {
        block.to_string()
    }
}

// === impl Destination ===

impl FromStr for Destination {
    type Err = ParseDestinationError;

    fn from_str(text: &str) -> Result<Self, ParseDestinationError> {
        match text.parse() {
            Ok(block) => Ok(Destination::Block(block)),
            // A slash, a colon or digits at the end: meant as addresses, and the message says so.
            Err(error) if looks_like_addresses(text) => Err(ParseDestinationError::Block(error)),
            Err(_) => Ok(Destination::Domain(text.parse()?)),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Block(block) => block.fmt(f),
            Destination::Domain(pattern) => pattern.fmt(f),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = ParseDestinationError;

    fn try_from(text: String) -> Result<Self, ParseDestinationError> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> String {
        destination.to_string()
    }
}

fn looks_like_addresses(text: &str) -> bool {
    let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    text.contains(['/', ':']) || last.bytes().all(|byte| byte.is_ascii_digit())
}

/// The start of a text that somebody else wrote, for a message.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_kept_as_it_was_written() {
        for text in ["8.8.8.8", "8.8.8.8/32", "10.0.0.0/8", "::/0", "example.com", "*.example.com", "*"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_destination_is_refused_with_what_would_be() {
        let wrong = [
            "",
            "1.2.3",
            "1.2.3.4/33",
            "300.1.1.1",
            "1.2.3.4:80",
            "a..b",
            "-a.com",
            "*.*.com",
            "a.*.com",
            "ex ample.com",
            "https://a.com",
            "*.",
        ];
        let errors = wrong.map(|text| format!("{text:?}: {}", text.parse::<Destination>().unwrap_err()));
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn bits_behind_the_prefix_do_not_matter() {
        let block: Block = "192.0.2.77/24".parse().unwrap();
        assert_eq!(block.v4().unwrap().to_string(), "192.0.2.0/24");
    }
}

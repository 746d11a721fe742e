//! What [`crate::Network::start`] has to be told.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{EgressPolicy, Reach};

/// The addresses that uplinks get unless configured otherwise.
pub const DEFAULT_POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 201, 0, 0), 16);

/// How the network of one server is set up.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Which server of this host it is: keeps tables and interfaces of two servers apart.
    pub instance: Instance,
    /// Addresses for the uplinks, two for each sandbox.
    pub pool: Ipv4Net,
    /// DNS server that sandboxes use; `None` takes the first usable one of the host's own.
    pub resolver: Option<IpAddr>,
    /// Which addresses sandboxes may have a way to at all.
    pub reach: Reach,
    /// What a new namespace may reach until told otherwise.
    pub egress: EgressPolicy,
}

/// The name of one server on a host: eight lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Instance(String);

/// A text is not an instance name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an instance name: those are eight of the digits 0-9 and a-f")]
pub struct ParseInstanceError(String);

// === impl NetworkOptions ===

impl NetworkOptions {
    /// The defaults, for the server named `instance`.
    pub fn new(instance: Instance) -> Self {
        Self {
            instance,
            pool: DEFAULT_POOL,
            resolver: None,
            reach: Reach::default(),
            egress: EgressPolicy::default(),
        }
    }
}

// === impl Instance ===

impl Instance {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Instance {
    type Err = ParseInstanceError;

    fn from_str(text: &str) -> Result<Self, ParseInstanceError> {
        let ok = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if ok { Ok(Self(text.to_owned())) } else { Err(ParseInstanceError(text.chars().take(40).collect())) }
    }
}

impl TryFrom<String> for Instance {
    type Error = ParseInstanceError;

    fn try_from(text: String) -> Result<Self, ParseInstanceError> {
        text.parse()
    }
}

impl From<Instance> for String {
    fn from(instance: Instance) -> String {
        instance.0
    }
}

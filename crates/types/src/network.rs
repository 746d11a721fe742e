//! What traffic a sandbox receives and sends, as its creator wants it (protocol section 1.1, `SandboxNetworkConfig`).
//!
//! Plain data: the control plane checks and stores it, the gateway enforces [`Ingress`], the network [`Egress`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Both directions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    /// From clients through the gateway to ports in the sandbox.
    pub ingress: Ingress,
    /// From the sandbox to the internet.
    pub egress: Egress,
}

/// Who reaches ports of the sandbox through the gateway, and what they look like from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ingress {
    /// Whether everybody does. If not, requests must carry the sandbox's traffic access token; the agent's port, which
    /// has a token of its own, is exempt.
    pub allow_public_traffic: bool,
    /// The `Host` header programs in the sandbox see, with `${PORT}` for the port; `None` leaves the client's.
    pub mask_request_host: Option<String>,
}

/// What the sandbox reaches. Private ranges, other sandboxes and the host stay out of reach whatever is written here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Egress {
    /// Addresses, CIDR blocks and domain names (`example.com`, `*.example.com`) that are reached even if `deny_out`
    /// has them too.
    pub allow_out: Vec<String>,
    /// Addresses and CIDR blocks that are not reached.
    pub deny_out: Vec<String>,
    /// Through which proxy connections leave.
    pub proxy: Option<EgressProxy>,
    /// Headers put into HTTP requests to a domain, by domain pattern.
    pub rules: BTreeMap<String, Vec<HeaderRule>>,
}

/// A SOCKS5 proxy of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressProxy {
    /// `host:port`.
    pub address: String,
    /// Name to log in with.
    pub username: Option<String>,
    /// Password to log in with.
    pub password: Option<String>,
}

/// One change of the requests to a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRule {
    /// Headers set on each request, replacing those of the same name.
    pub headers: BTreeMap<String, String>,
}

// === impl Ingress ===

impl Default for Ingress {
    fn default() -> Self {
        Self { allow_public_traffic: true, mask_request_host: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_from_before_there_were_network_settings_has_the_open_ones() {
        let config: NetworkConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config, NetworkConfig::default());
        assert!(config.ingress.allow_public_traffic);
    }
}

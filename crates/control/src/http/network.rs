//! `network` of a sandbox on the wire: `SandboxNetworkConfig` of protocol section 1.1.

use serde::Deserialize;
use serde_json::Value;
use torpor_types::NetworkConfig;

use super::error::ApiError;
use super::wire::is_nothing;

/// What a client wants of a sandbox's traffic.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Network {
    allow_public_traffic: Option<bool>,
    mask_request_host: Option<String>,
    allow_out: Value,
    deny_out: Value,
    egress_proxy: Value,
    rules: Value,
}

// === impl Network ===

impl Network {
    /// Checks it. What this server cannot do yet is refused, not ignored: a client that asks for a firewall rule must
    /// not believe that it has one.
    pub(super) fn into_config(self) -> Result<NetworkConfig, ApiError> {
        let unsupported = [
            ("allowPublicTraffic", self.allow_public_traffic == Some(false)),
            ("maskRequestHost", self.mask_request_host.is_some()),
            ("allowOut", !is_nothing(&self.allow_out)),
            ("denyOut", !is_nothing(&self.deny_out)),
            ("egressProxy", !is_nothing(&self.egress_proxy)),
            ("rules", !is_nothing(&self.rules)),
        ];
        match unsupported.iter().find(|(_, asked)| *asked) {
            Some((name, _)) => {
                Err(ApiError::bad_request(format!("network.{name} is not supported by this server yet")))
            }
            None => Ok(NetworkConfig::default()),
        }
    }
}

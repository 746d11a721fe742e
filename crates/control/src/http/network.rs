//! `network` of a sandbox on the wire: `SandboxNetworkConfig` of protocol section 1.1.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use torpor_types::{Ingress, NetworkConfig};
use utoipa::ToSchema;

use super::egress::EgressJson;
use super::error::ApiError;
use super::wire::is_nothing;

/// What a client wants of a sandbox's traffic.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[schema(as = SandboxNetworkConfig)]
pub(super) struct Network {
    allow_public_traffic: Option<bool>,
    mask_request_host: Option<String>,
    https_ports: Value,
    #[serde(flatten)]
    egress: EgressJson,
}

/// What a client is shown of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkDetail {
    allow_public_traffic: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_request_host: Option<String>,
    #[serde(flatten)]
    egress: EgressJson,
}

// === impl Network ===

impl Network {
    /// Checks it. What this server cannot do yet is refused, not ignored: a client that asks for a firewall rule must
    /// not believe that it has one.
    pub(super) fn into_config(self, allow_internet: bool) -> Result<NetworkConfig, ApiError> {
        let unsupported = [
            ("allowPublicTraffic", self.allow_public_traffic == Some(false)),
            ("maskRequestHost", self.mask_request_host.is_some()),
            ("httpsPorts", !is_nothing(&self.https_ports)),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, asked)| *asked) {
            return Err(ApiError::bad_request(format!("network.{name} is not supported by this server yet")));
        }
        Ok(NetworkConfig { ingress: Ingress::default(), egress: self.egress.into_egress(allow_internet)? })
    }
}

// === impl NetworkDetail ===

impl NetworkDetail {
    /// `None` where everything is as it is without settings.
    pub(super) fn of(config: &NetworkConfig) -> Option<Self> {
        (*config != NetworkConfig::default()).then(|| Self {
            allow_public_traffic: config.ingress.allow_public_traffic,
            mask_request_host: config.ingress.mask_request_host.clone(),
            egress: EgressJson::from(&config.egress),
        })
    }
}

//! `network` of a sandbox on the wire: `SandboxNetworkConfig` of protocol section 1.1.

use std::collections::BTreeSet;

use axum::http::uri::Authority;
use serde::{Deserialize, Serialize};
use torpor_network::AGENT_PORT;
use torpor_types::{Ingress, NetworkConfig};
use utoipa::ToSchema;

use super::egress::EgressJson;
use super::error::ApiError;

/// What a client wants of a sandbox's traffic.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[schema(as = SandboxNetworkConfig)]
pub(super) struct Network {
    allow_public_traffic: Option<bool>,
    mask_request_host: Option<String>,
    https_ports: Option<Vec<i64>>,
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
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    https_ports: BTreeSet<u16>,
    #[serde(flatten)]
    egress: EgressJson,
}

// === impl Network ===

impl Network {
    /// Checks it. What this server cannot do yet is refused, not ignored: a client that asks for a firewall rule must
    /// not believe that it has one.
    pub(super) fn into_config(self, allow_internet: bool) -> Result<NetworkConfig, ApiError> {
        Ok(NetworkConfig { ingress: self.ingress()?, egress: self.egress.into_egress(allow_internet)? })
    }

    fn ingress(&self) -> Result<Ingress, ApiError> {
        let mask = self.mask_request_host.clone().filter(|mask| !mask.is_empty());
        if let Some(mask) = &mask
            && !is_host(&mask.replace("${PORT}", "65535"))
        {
            return Err(ApiError::bad_request(format!(
                "network.maskRequestHost: '{mask}' is not a host name with or without a port, such as localhost:${{PORT}}"
            )));
        }
        let mut https_ports = BTreeSet::new();
        for port in self.https_ports.iter().flatten() {
            match u16::try_from(*port) {
                Ok(port) if port != 0 && port != AGENT_PORT => https_ports.insert(port),
                _ => {
                    return Err(ApiError::bad_request(format!(
                        "network.httpsPorts: {port} is no port of a program: those are 1 to 65535 without {AGENT_PORT}, \
                         which is the agent's"
                    )));
                }
            };
        }
        Ok(Ingress {
            allow_public_traffic: self.allow_public_traffic.unwrap_or(true),
            mask_request_host: mask,
            https_ports,
        })
    }
}

// === impl NetworkDetail ===

impl NetworkDetail {
    /// `None` where everything is as it is without settings.
    pub(super) fn of(config: &NetworkConfig) -> Option<Self> {
        (*config != NetworkConfig::default()).then(|| Self {
            allow_public_traffic: config.ingress.allow_public_traffic,
            mask_request_host: config.ingress.mask_request_host.clone(),
            https_ports: config.ingress.https_ports.clone(),
            egress: EgressJson::from(&config.egress),
        })
    }
}

/// Whether a text can be a `Host` header.
fn is_host(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let (host, port) = (authority.host(), authority.port());
    // A port out of range is none, and what is before an '@' is in neither.
    let parts = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    !host.is_empty() && parts == text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn ingress(network: Value) -> Result<Ingress, ApiError> {
        let network: Network = serde_json::from_value(network).unwrap();
        network.into_config(true).map(|config| config.ingress)
    }

    #[test]
    fn silence_means_public_traffic_and_the_clients_own_host() {
        assert_eq!(ingress(json!({})).unwrap(), Ingress::default());
        let asked =
            ingress(json!({"allowPublicTraffic": false, "maskRequestHost": "localhost:${PORT}"})).unwrap();
        assert!(!asked.allow_public_traffic);
        assert_eq!(asked.mask_request_host.as_deref(), Some("localhost:${PORT}"));
    }

    #[test]
    fn a_mask_that_is_no_host_is_refused() {
        for wrong in ["a b", "http://localhost", "user@host", "localhost:${PORT}0", "${HOST}", "a/b", ":80"] {
            assert!(ingress(json!({ "maskRequestHost": wrong })).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_that_serve_https_are_ports_of_programs() {
        assert_eq!(ingress(json!({"httpsPorts": [8443, 3000]})).unwrap().https_ports, [3000, 8443].into());
        for wrong in [0, -1, 65536, i64::from(AGENT_PORT)] {
            assert!(ingress(json!({ "httpsPorts": [wrong] })).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_mask_that_is_accepted_can_be_sent(mask in "\\PC{0,20}(\\$\\{PORT\\})?", port in 1u16..) {
            let Ok(Ingress { mask_request_host: Some(mask), .. }) = ingress(json!({ "maskRequestHost": mask })) else {
                return Ok(());
            };
            let sent = mask.replace("${PORT}", &port.to_string());
            prop_assert!(axum::http::HeaderValue::from_str(&sent).is_ok());
        }
    }
}

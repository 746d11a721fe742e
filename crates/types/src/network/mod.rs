//! What traffic a sandbox receives and sends, as its creator wants it (protocol section 1.1, `SandboxNetworkConfig`).
//!
//! Plain data: the control plane checks and stores it, the gateway enforces [`Ingress`], the network [`Egress`].

mod destination;
mod domain;
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use destination::{Block, Destination, ParseBlockError, ParseDestinationError};
pub use domain::{DomainName, DomainPattern, ParseDomainError};
pub use proxy::{EgressProxy, ParseProxyAddressError, ProxyAddress, ProxyTls};

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
    /// Ports whose programs serve HTTPS themselves: the gateway speaks TLS with them, and takes any certificate.
    pub https_ports: BTreeSet<u16>,
}

/// What the sandbox reaches. Private ranges, other sandboxes and the host stay out of reach whatever is written here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Egress {
    /// What is reached even if `deny_out` has it too.
    pub allow_out: Vec<Destination>,
    /// What is not reached. Whatever neither list has is reached.
    pub deny_out: Vec<Block>,
    /// Through which proxy connections leave.
    pub proxy: Option<EgressProxy>,
    /// Headers put into HTTP requests to a domain. Only the most specific pattern that matches counts.
    pub rules: BTreeMap<DomainPattern, Vec<HeaderRule>>,
    /// DNS servers that are reached although everything is denied, in place of the node's; for sandboxes with domains
    /// in `allow_out`. `None` is the node's.
    pub dns_servers: Option<Vec<Ipv4Addr>>,
}

/// One change of the requests to a domain.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRule {
    /// Headers set on each request, replacing those of the same name.
    pub headers: BTreeMap<String, String>,
}

// === impl Egress ===

impl Egress {
    /// The addresses of `allow_out`, aggregated.
    pub fn allowed_nets(&self) -> Vec<Ipv4Net> {
        let blocks = self.allow_out.iter().filter_map(|destination| match destination {
            Destination::Block(block) => block.v4(),
            Destination::Domain(_) => None,
        });
        Ipv4Net::aggregate(&blocks.collect())
    }

    /// The addresses of `deny_out`, aggregated.
    pub fn denied_nets(&self) -> Vec<Ipv4Net> {
        Ipv4Net::aggregate(&self.deny_out.iter().filter_map(Block::v4).collect())
    }

    /// The domains of `allow_out`.
    pub fn allowed_domains(&self) -> impl Iterator<Item = &DomainPattern> {
        self.allow_out.iter().filter_map(|destination| match destination {
            Destination::Domain(pattern) => Some(pattern),
            Destination::Block(_) => None,
        })
    }

    /// Whether every address is denied that is not allowed.
    pub fn denies_all(&self) -> bool {
        self.denied_nets().iter().any(|net| net.prefix_len() == 0)
    }

    /// Whether a name in `allow_out` matches.
    pub fn allows_name(&self, name: &DomainName) -> bool {
        self.allowed_domains().any(|pattern| pattern.matches(name))
    }

    /// Whether an address is reached, names left aside: allow beats deny.
    pub fn allows_address(&self, address: Ipv4Addr) -> bool {
        let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&address));
        within(&self.allowed_nets()) || !within(&self.denied_nets())
    }

    /// The header rules for a name: of the exact entry, else of the longest wildcard that matches.
    pub fn rules_for(&self, name: &DomainName) -> &[HeaderRule] {
        let matching = self.rules.iter().filter(|(pattern, _)| pattern.matches(name));
        let best = matching.max_by_key(|(pattern, _)| pattern.specificity());
        best.map_or(&[], |(_, rules)| rules.as_slice())
    }

    /// This with every address denied that is not allowed: what `allow_internet_access: false` stands for.
    pub fn without_internet(mut self) -> Self {
        if !self.denies_all() {
            self.deny_out.push(Block::ALL);
        }
        self
    }
}

// === impl Ingress ===

impl Default for Ingress {
    fn default() -> Self {
        Self { allow_public_traffic: true, mask_request_host: None, https_ports: BTreeSet::new() }
    }
}

// === impl HeaderRule ===

impl std::fmt::Debug for HeaderRule {
    /// Names only: values are credentials more often than not.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.headers.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn egress(allow: &[&str], deny: &[&str]) -> Egress {
        Egress {
            allow_out: allow.iter().map(|entry| entry.parse().unwrap()).collect(),
            deny_out: deny.iter().map(|entry| entry.parse().unwrap()).collect(),
            ..Egress::default()
        }
    }

    #[test]
    fn a_record_from_before_there_were_network_settings_has_the_open_ones() {
        let config: NetworkConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config, NetworkConfig::default());
        assert!(config.ingress.allow_public_traffic);
        assert!(config.egress.allows_address(Ipv4Addr::new(192, 0, 2, 1)));
    }

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let mut written = egress(&["8.8.8.8", "9.9.9.0/24", "*.example.com"], &["0.0.0.0/0", "::/0"]);
        written.rules.insert("api.example.com".parse().unwrap(), vec![HeaderRule::default()]);
        written.proxy =
            Some(EgressProxy { address: "p:1".parse().unwrap(), username: None, password: None, tls: None });
        let text = serde_json::to_string(&written).unwrap();
        assert!(text.contains(r#""allow_out":["8.8.8.8","9.9.9.0/24","*.example.com"]"#), "{text}");
        assert_eq!(serde_json::from_str::<Egress>(&text).unwrap(), written);
    }

    #[test]
    fn denying_both_halves_is_denying_all() {
        assert!(egress(&[], &["0.0.0.0/1", "128.0.0.0/1"]).denies_all());
        assert!(!egress(&[], &["0.0.0.0/1", "::/0"]).denies_all());
        assert!(egress(&[], &[]).without_internet().denies_all());
    }

    #[test]
    fn only_the_most_specific_rule_counts() {
        let mut egress = Egress::default();
        for (pattern, value) in
            [("*.example.com", "wide"), ("*.eu.example.com", "eu"), ("a.example.com", "a")]
        {
            let rule = HeaderRule { headers: [("x".to_owned(), value.to_owned())].into() };
            egress.rules.insert(pattern.parse().unwrap(), vec![rule]);
        }
        for (name, value) in [
            ("a.example.com", Some("a")),
            ("b.example.com", Some("wide")),
            ("a.b.eu.example.com", Some("eu")),
            ("example.com", None),
        ] {
            let rules = egress.rules_for(&name.parse().unwrap());
            assert_eq!(rules.first().map(|rule| rule.headers["x"].as_str()), value, "{name}");
        }
    }

    #[test]
    fn credentials_are_not_printed() {
        let mut egress = Egress::default();
        let rule = HeaderRule { headers: [("authorization".to_owned(), "s3cret".to_owned())].into() };
        egress.rules.insert("example.com".parse().unwrap(), vec![rule]);
        egress.proxy = Some(EgressProxy {
            address: "proxy.example.com:1080".parse().unwrap(),
            username: Some("me".to_owned()),
            password: Some("s3cret".to_owned()),
            tls: None,
        });
        let shown = format!("{egress:?}");
        assert!(shown.contains("authorization") && !shown.contains("s3cret"), "{shown}");
    }

    prop_compose! {
        fn any_net()(address: u32, length in 0_u8..=32) -> Ipv4Net {
            Ipv4Net::new(Ipv4Addr::from_bits(address), length).unwrap()
        }
    }

    proptest! {
        #[test]
        fn what_is_allowed_is_reached_whatever_is_denied(
            allow in proptest::collection::vec(any_net(), 0..6),
            deny in proptest::collection::vec(any_net(), 0..6),
            address: u32,
        ) {
            let blocks = |nets: &[Ipv4Net]| nets.iter().map(|net| Block::Net((*net).into())).collect::<Vec<_>>();
            let egress = Egress {
                allow_out: blocks(&allow).into_iter().map(Destination::Block).collect(),
                deny_out: blocks(&deny),
                ..Egress::default()
            };
            let mut addresses = vec![Ipv4Addr::from_bits(address)];
            addresses.extend(allow.iter().chain(&deny).flat_map(|net| [net.network(), net.broadcast()]));
            for address in addresses {
                let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&address));
                prop_assert_eq!(egress.allows_address(address), within(&allow) || !within(&deny));
            }
        }
    }
}

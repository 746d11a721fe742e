//! What one sandbox may reach, as far as addresses decide it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use torpor_types::Egress;

/// What one sandbox may reach, and what of it the egress proxy has to see. Whatever it says, private ranges, other
/// sandboxes and the host stay out of reach unless the operator opened them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    /// Reached whatever `deny` says. Aggregated.
    pub allow: Vec<Ipv4Net>,
    /// Not reached. Aggregated.
    pub deny: Vec<Ipv4Net>,
    /// How the sandbox resolves names.
    pub names: NameService,
    /// Whether TCP connections to addresses that may be reached go through the egress proxy all the same: it adds
    /// headers, or takes them to a proxy of the user's.
    pub inspect_allowed: bool,
    /// Whether TCP connections to addresses that are denied go to the egress proxy instead of being refused: it looks for
    /// a name that is allowed.
    pub inspect_denied: bool,
}

/// How a sandbox resolves names. A resolver is a way out, too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NameService {
    /// Its gateway passes queries on to the node's resolver.
    #[default]
    Open,
    /// The egress proxy answers for names that are allowed.
    Filtered,
    /// It has these DNS servers instead of its gateway; without any, it resolves nothing.
    Only(Vec<Ipv4Addr>),
}

// === impl EgressPolicy ===

impl EgressPolicy {
    /// Reaches nothing, and resolves no name.
    pub fn nothing() -> Self {
        Self { deny: vec![Ipv4Net::default()], names: NameService::Only(Vec::new()), ..Self::default() }
    }

    /// Whether the egress proxy has to serve this sandbox.
    pub fn needs_proxy(&self) -> bool {
        self.inspect_allowed || self.inspect_denied || self.names == NameService::Filtered
    }
}

impl From<&Egress> for EgressPolicy {
    fn from(egress: &Egress) -> Self {
        let has_domains = egress.allowed_domains().next().is_some();
        let names = match (egress.denies_all(), has_domains, &egress.dns_servers) {
            (false, _, _) => NameService::Open,
            (true, true, None) => NameService::Filtered,
            (true, true, Some(servers)) => NameService::Only(servers.clone()),
            (true, false, _) => NameService::Only(Vec::new()),
        };
        let has_headers = egress.rules.values().flatten().any(|rule| !rule.headers.is_empty());
        Self {
            allow: egress.allowed_nets(),
            deny: egress.denied_nets(),
            names,
            inspect_allowed: has_headers || egress.proxy.is_some(),
            inspect_denied: has_domains,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sandboxes_with_domains_headers_or_a_proxy_go_through_the_egress_proxy() {
        let policy = |json: &str| EgressPolicy::from(&serde_json::from_str::<Egress>(json).unwrap());
        for (json, inspected) in [
            ("{}", (false, false)),
            (r#"{"allow_out":["8.8.8.8"],"deny_out":["0.0.0.0/0"]}"#, (false, false)),
            (r#"{"rules":{"a.com":[{"headers":{}}]}}"#, (false, false)),
            (r#"{"allow_out":["a.com"],"deny_out":["0.0.0.0/0"]}"#, (false, true)),
            (r#"{"rules":{"a.com":[{"headers":{"x":"y"}}]}}"#, (true, false)),
            (r#"{"proxy":{"address":"p.example:1"}}"#, (true, false)),
        ] {
            let policy = policy(json);
            assert_eq!((policy.inspect_allowed, policy.inspect_denied), inspected, "{json}");
            assert_eq!(policy.needs_proxy(), inspected.0 || inspected.1, "{json}");
        }
    }

    #[test]
    fn who_is_denied_everything_resolves_only_what_is_allowed() {
        let names = |json: &str| EgressPolicy::from(&serde_json::from_str::<Egress>(json).unwrap()).names;
        assert_eq!(names(r#"{"deny_out":["8.8.8.8"]}"#), NameService::Open);
        assert_eq!(names(r#"{"deny_out":["0.0.0.0/0"],"allow_out":["1.1.1.1"]}"#), NameService::Only(vec![]));
        assert_eq!(names(r#"{"deny_out":["0.0.0.0/0"],"allow_out":["a.com"]}"#), NameService::Filtered);
        let own = names(r#"{"deny_out":["0.0.0.0/0"],"allow_out":["a.com"],"dns_servers":["9.9.9.9"]}"#);
        assert_eq!(own, NameService::Only(vec![Ipv4Addr::new(9, 9, 9, 9)]));
    }
}

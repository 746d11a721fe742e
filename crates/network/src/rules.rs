//! The nft rules, as text. Pure functions: what a sandbox may reach can be read in the snapshots beside the tests.
//!
//! In a namespace, a packet of the guest's takes one of three ways:
//!
//! ```text
//!             ┌─ detour: to the egress proxy, which listens in the namespace ─ input ─▶ proxy ─ output: guard ─▶ uplink
//!  guest ─ tap0 ─ forward: egress ─▶ uplink ─▶ host: from_sandbox ─▶ internet
//!             └─ refuse: a reset for TCP, "prohibited" for the rest, so that programs fail at once
//! ```

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::reach::destined_to;
use crate::{
    EgressPolicy, GATEWAY_ADDRESS, GUEST_ADDRESS, Instance, NAMES_PORT, NameService, PROXY_PORT, Reach,
    TAP_NAME,
};

/// The namespace's end of the veth pair.
pub(crate) const UPLINK_NAME: &str = "uplink";

/// Start of the names of an instance's interfaces on the host.
pub(crate) fn uplink_prefix(instance: &Instance) -> String {
    format!("tp{instance}")
}

/// Name of the instance's table on the host.
pub(crate) fn host_table_name(instance: &Instance) -> String {
    format!("torpor_{instance}")
}

/// The host's rules. Loading them replaces a former table of the instance in one transaction.
pub(crate) fn host_table(
    instance: &Instance,
    pool: Ipv4Net,
    resolver: Option<Ipv4Addr>,
    reach: &Reach,
) -> String {
    let table = host_table_name(instance);
    let ours = format!("\"{}*\"", uplink_prefix(instance));
    let dns = resolver.map_or(String::new(), |resolver| lines(accept_dns(resolver)));
    let beyond = reach.beyond();
    // The host's own ends of the links are never opened: behind them is the host, and nothing else.
    let opened = match reach.opened() {
        [] => String::new(),
        opened => lines([format!("ip daddr {pool} drop"), format!("{} accept", destined_to(opened))]),
    };
    format!(
        "\
table inet {table}
delete table inet {table}
table inet {table} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname {ours} jump from_sandbox
    oifname {ours} jump to_sandbox
  }}
  chain from_sandbox {{
    oifname \"tp*\" drop
    meta nfproto != ipv4 drop
    ip saddr != {pool} drop
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
{dns}    {beyond} drop
  }}
  chain to_sandbox {{
    ct state established,related accept
    drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {ours} jump to_host
  }}
  chain to_host {{
{dns}{opened}    drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool} oifname != \"tp*\" masquerade
  }}
}}
"
    )
}

/// The rules of a namespace. Loading them replaces those it has in one transaction.
///
/// Every packet of the guest passes them, also those of established connections, so a stricter policy cuts those.
pub(crate) fn namespace_table(policy: &EgressPolicy, resolver: Option<Ipv4Addr>, reach: &Reach) -> String {
    let beyond = reach.beyond();
    let detour = lines(detour_rules(policy, resolver, reach));
    let egress = lines(egress_rules(policy, resolver, reach));
    let dns = resolver.map_or(String::new(), |resolver| lines(accept_dns(resolver)));
    format!(
        "\
table inet torpor
delete table inet torpor
table inet torpor {{
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname \"{TAP_NAME}\" meta nfproto ipv4 jump detour
  }}
  chain detour {{
{detour}  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname \"{TAP_NAME}\" ct status dnat accept
    iifname \"{TAP_NAME}\" jump refuse
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname \"{TAP_NAME}\" oifname \"{UPLINK_NAME}\" ip saddr {GUEST_ADDRESS} jump egress
    iifname \"{UPLINK_NAME}\" oifname \"{TAP_NAME}\" ct state established,related accept
  }}
  chain egress {{
{egress}  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname \"{UPLINK_NAME}\" jump guard
  }}
  chain guard {{
{dns}    {beyond} jump refuse
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{UPLINK_NAME}\" masquerade
  }}
}}
"
    )
}

/// Which packets of the guest go elsewhere than where they are addressed to.
fn detour_rules(policy: &EgressPolicy, resolver: Option<Ipv4Addr>, reach: &Reach) -> Vec<String> {
    let mut rules = Vec::new();
    let resolver = match policy.names {
        NameService::Open => resolver.map(|resolver| resolver.to_string()),
        NameService::Filtered => Some(format!("{GATEWAY_ADDRESS}:{NAMES_PORT}")),
        NameService::Only(_) => None,
    };
    if let Some(resolver) = resolver {
        for protocol in ["udp", "tcp"] {
            rules.push(format!("ip daddr {GATEWAY_ADDRESS} {protocol} dport 53 dnat ip to {resolver}"));
        }
    }
    if !policy.inspect_allowed && !policy.inspect_denied {
        return rules;
    }
    let to_proxy = format!("meta l4proto tcp dnat ip to {GATEWAY_ADDRESS}:{PROXY_PORT}");
    let verdict = |inspect| if inspect { to_proxy.as_str() } else { "return" };
    rules.push(format!("{} return", reach.beyond()));
    if let NameService::Only(servers) = &policy.names {
        rules.extend(servers.iter().map(|server| format!("ip daddr {server} tcp dport 53 return")));
    }
    if !policy.allow.is_empty() {
        rules.push(format!("{} {}", destined_to(&policy.allow), verdict(policy.inspect_allowed)));
    }
    if !policy.deny.is_empty() {
        rules.push(format!("{} {}", destined_to(&policy.deny), verdict(policy.inspect_denied)));
    }
    rules.push(verdict(policy.inspect_allowed).to_owned());
    until_decided(rules, &[&to_proxy, "return"])
}

/// What becomes of packets that leave as they are.
fn egress_rules(policy: &EgressPolicy, resolver: Option<Ipv4Addr>, reach: &Reach) -> Vec<String> {
    let mut rules: Vec<String> = Vec::new();
    if let (NameService::Open, Some(resolver)) = (&policy.names, resolver) {
        rules.extend(accept_dns(resolver));
    }
    rules.push(format!("{} jump refuse", reach.beyond()));
    if let NameService::Only(servers) = &policy.names {
        rules.extend(servers.iter().flat_map(|server| accept_dns(*server)));
    }
    if policy.inspect_allowed {
        // Connections from before the egress proxy had to see them.
        rules.push("meta l4proto tcp jump refuse".to_owned());
    }
    if !policy.allow.is_empty() {
        rules.push(format!("{} accept", destined_to(&policy.allow)));
    }
    if !policy.deny.is_empty() {
        rules.push(format!("{} jump refuse", destined_to(&policy.deny)));
    }
    rules.push("accept".to_owned());
    until_decided(rules, &["jump refuse", "accept"])
}

/// Leaves out what no packet gets to: everything behind a verdict without a condition.
fn until_decided(rules: Vec<String>, verdicts: &[&str]) -> Vec<String> {
    let mut decided = false;
    let rules = rules.into_iter().map(|rule| rule.trim_start().to_owned());
    rules.take_while(|rule| !std::mem::replace(&mut decided, verdicts.contains(&rule.as_str()))).collect()
}

fn accept_dns(resolver: Ipv4Addr) -> [String; 2] {
    ["udp", "tcp"].map(|protocol| format!("ip daddr {resolver} {protocol} dport 53 accept"))
}

/// Rules as the lines of a chain.
fn lines(rules: impl IntoIterator<Item = String>) -> String {
    rules.into_iter().fold(String::new(), |mut text, rule| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {rule}");
        text
    })
}

#[cfg(test)]
mod tests {
    use torpor_types::Egress;

    use super::*;
    use crate::DEFAULT_POOL;

    fn instance() -> Instance {
        "0123abcd".parse().unwrap()
    }

    fn opening() -> Reach {
        Reach::opening(&["10.77.0.0/16".parse().unwrap()])
    }

    /// What the chains `detour` and `egress` say.
    fn variable_part(json: &str, reach: &Reach) -> String {
        let policy = EgressPolicy::from(&serde_json::from_str::<Egress>(json).unwrap());
        let (detour, egress) =
            (detour_rules(&policy, RESOLVER, reach), egress_rules(&policy, RESOLVER, reach));
        format!("{json}\ndetour:\n{}egress:\n{}", lines(detour), lines(egress))
    }

    const RESOLVER: Option<Ipv4Addr> = Some(Ipv4Addr::new(10, 0, 0, 53));

    #[test]
    fn the_host_lets_sandboxes_reach_the_resolver_and_public_addresses_only() {
        insta::assert_snapshot!(host_table(&instance(), DEFAULT_POOL, RESOLVER, &Reach::default()));
    }

    #[test]
    fn the_host_lets_sandboxes_reach_what_the_operator_opened() {
        insta::assert_snapshot!(host_table(&instance(), DEFAULT_POOL, RESOLVER, &opening()));
    }

    #[test]
    fn without_a_resolver_the_host_lets_nothing_in() {
        let table = host_table(&instance(), DEFAULT_POOL, None, &Reach::default());
        assert!(!table.contains("dport"), "{table}");
        assert!(table.contains("chain to_host {\n    drop\n"), "{table}");
    }

    #[test]
    fn a_namespace_forwards_names_and_public_addresses_only() {
        insta::assert_snapshot!(namespace_table(&EgressPolicy::default(), RESOLVER, &Reach::default()));
    }

    #[test]
    fn what_a_policy_lets_through_directly_and_what_the_egress_proxy_sees() {
        let policies = [
            r#"{"deny_out":["0.0.0.0/0"]}"#,
            r#"{"allow_out":["8.8.8.8","8.8.4.0/24"],"deny_out":["8.0.0.0/8","9.9.9.9"]}"#,
            r#"{"allow_out":["8.8.8.8","example.com"],"deny_out":["0.0.0.0/0"]}"#,
            r#"{"allow_out":["example.com"],"deny_out":["0.0.0.0/0"],"dns_servers":["9.9.9.9"]}"#,
            r#"{"deny_out":["9.9.9.9"],"rules":{"a.com":[{"headers":{"x":"y"}}]}}"#,
            r#"{"allow_out":["8.8.8.8","a.com"],"deny_out":["0.0.0.0/0"],"rules":{"a.com":[{"headers":{"x":"y"}}]}}"#,
            r#"{"proxy":{"address":"proxy.example:1080"}}"#,
        ];
        let closed = policies.map(|policy| variable_part(policy, &Reach::default()));
        let opened = variable_part(policies[2], &opening());
        insta::assert_snapshot!(format!("{}\nwith 10.77.0.0/16 opened, {opened}", closed.join("\n")));
    }

    #[test]
    fn interface_names_fit_the_kernels_fifteen_bytes() {
        assert!(format!("{}ffff", uplink_prefix(&instance())).len() <= 15);
    }
}

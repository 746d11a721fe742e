//! The nft rules, as text. Pure functions: what a sandbox may reach can be read in the snapshots beside the tests.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::{EgressPolicy, GATEWAY_ADDRESS, GUEST_ADDRESS, Instance, TAP_NAME};

/// The namespace's end of the veth pair.
pub(crate) const UPLINK_NAME: &str = "uplink";

/// Where no sandbox gets, whatever its policy: this host, private and shared ranges, link-local (cloud metadata lives there),
/// benchmarks, multicast, reserved. The only exception is the resolver's port 53.
const UNREACHABLE: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
     192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

/// Start of the names of an instance's interfaces on the host.
pub(crate) fn uplink_prefix(instance: &Instance) -> String {
    format!("tp{instance}")
}

/// Name of the instance's table on the host.
pub(crate) fn host_table_name(instance: &Instance) -> String {
    format!("torpor_{instance}")
}

/// The host's rules. Loading them replaces a former table of the instance in one transaction.
pub(crate) fn host_table(instance: &Instance, pool: Ipv4Net, resolver: Option<Ipv4Addr>) -> String {
    let table = host_table_name(instance);
    let ours = format!("\"{}*\"", uplink_prefix(instance));
    let dns = resolver.map_or(String::new(), |resolver| accept_dns(resolver, "    "));
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
{dns}    ip daddr {{ {UNREACHABLE} }} drop
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
{dns}    drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool} oifname != \"tp*\" masquerade
  }}
}}
"
    )
}

/// The rules of a new namespace.
pub(crate) fn namespace_table(policy: &EgressPolicy, resolver: Option<Ipv4Addr>) -> String {
    let dnat = resolver.map_or(String::new(), |resolver| {
        ["udp", "tcp"].into_iter().fold(String::new(), |mut rules, protocol| {
            // Writing to a String cannot fail.
            let _ = writeln!(
                rules,
                "    iifname \"{TAP_NAME}\" ip daddr {GATEWAY_ADDRESS} {protocol} dport 53 dnat ip to {resolver}"
            );
            rules
        })
    });
    let egress = egress_rules(policy, resolver).into_iter().fold(String::new(), |mut rules, rule| {
        let _ = writeln!(rules, "    {rule}");
        rules
    });
    format!(
        "\
table inet torpor {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
{dnat}  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname \"{TAP_NAME}\" oifname \"{UPLINK_NAME}\" ip saddr {GUEST_ADDRESS} jump egress
    iifname \"{UPLINK_NAME}\" oifname \"{TAP_NAME}\" ct state established,related accept
  }}
  chain egress {{
{egress}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{UPLINK_NAME}\" masquerade
  }}
}}
"
    )
}

/// Replaces the egress rules of a namespace in one transaction.
///
/// Every packet of the guest passes them, also those of established connections, so a stricter policy cuts those.
pub(crate) fn egress_change(policy: &EgressPolicy, resolver: Option<Ipv4Addr>) -> String {
    let mut text = String::from("flush chain inet torpor egress\n");
    for rule in egress_rules(policy, resolver) {
        let _ = writeln!(text, "add rule inet torpor egress {rule}");
    }
    text
}

fn egress_rules(policy: &EgressPolicy, resolver: Option<Ipv4Addr>) -> Vec<String> {
    if !policy.allow_internet {
        return vec!["drop".to_owned()];
    }
    let mut rules: Vec<String> = Vec::new();
    if let Some(resolver) = resolver {
        rules.extend(accept_dns(resolver, "").lines().map(str::to_owned));
    }
    rules.push(format!("ip daddr {{ {UNREACHABLE} }} drop"));
    rules.push("accept".to_owned());
    rules
}

fn accept_dns(resolver: Ipv4Addr, indent: &str) -> String {
    format!(
        "{indent}ip daddr {resolver} udp dport 53 accept\n{indent}ip daddr {resolver} tcp dport 53 accept\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEFAULT_POOL;

    fn instance() -> Instance {
        "0123abcd".parse().unwrap()
    }

    const RESOLVER: Option<Ipv4Addr> = Some(Ipv4Addr::new(10, 0, 0, 53));

    #[test]
    fn the_host_lets_sandboxes_reach_the_resolver_and_public_addresses_only() {
        insta::assert_snapshot!(host_table(&instance(), DEFAULT_POOL, RESOLVER));
    }

    #[test]
    fn without_a_resolver_the_host_lets_nothing_in() {
        let table = host_table(&instance(), DEFAULT_POOL, None);
        assert!(!table.contains("dport"), "{table}");
        assert!(table.contains("chain to_host {\n    drop\n"), "{table}");
    }

    #[test]
    fn a_namespace_forwards_names_and_public_addresses_only() {
        insta::assert_snapshot!(namespace_table(&EgressPolicy::default(), RESOLVER));
    }

    #[test]
    fn without_internet_a_namespace_forwards_nothing() {
        insta::assert_snapshot!(egress_change(&EgressPolicy { allow_internet: false }, RESOLVER));
    }

    #[test]
    fn opening_the_way_out_again_restores_the_first_rules() {
        let opened = egress_change(&EgressPolicy::default(), RESOLVER);
        let first = namespace_table(&EgressPolicy::default(), RESOLVER);
        for rule in opened.lines().skip(1) {
            let rule = rule.strip_prefix("add rule inet torpor egress ").unwrap();
            assert!(first.contains(&format!("    {rule}\n")), "{rule}");
        }
    }

    #[test]
    fn interface_names_fit_the_kernels_fifteen_bytes() {
        assert!(format!("{}ffff", uplink_prefix(&instance())).len() <= 15);
    }
}

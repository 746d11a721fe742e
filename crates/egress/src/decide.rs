//! What becomes of a connection. Pure.

use std::net::SocketAddrV4;

use http::{HeaderMap, HeaderName, HeaderValue};
use torpor_types::{DomainName, Egress, EgressProxy};

use crate::opening::Opening;

/// What becomes of a connection, and by which way it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) verdict: Verdict,
    /// Through which proxy of the user's.
    pub(crate) proxy: Option<EgressProxy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is reset.
    Refuse,
    /// It goes to the address the guest asked for.
    AsAsked,
    /// It goes to an address of this name.
    ToName(DomainName),
    /// It goes to an address of this name, and these headers are set on each request. If the name itself is not allowed,
    /// the address has to be.
    WithHeaders { name: DomainName, headers: HeaderMap, name_allowed: bool },
}

/// Decides about a connection to `destination` that begins with `opening`.
pub(crate) fn decide(egress: &Egress, destination: SocketAddrV4, opening: &Opening) -> Decision {
    Decision { verdict: verdict(egress, destination, opening), proxy: egress.proxy.clone() }
}

fn verdict(egress: &Egress, destination: SocketAddrV4, opening: &Opening) -> Verdict {
    let address_allowed = egress.allows_address(*destination.ip());
    let Some(name) = opening.name() else {
        return if address_allowed { Verdict::AsAsked } else { Verdict::Refuse };
    };
    let name_allowed = egress.allows_name(name);
    if !address_allowed && !name_allowed {
        return Verdict::Refuse;
    }
    let headers = headers_for(egress, name);
    if !headers.is_empty() && opening.is_http() {
        return Verdict::WithHeaders { name: name.clone(), headers, name_allowed };
    }
    if address_allowed { Verdict::AsAsked } else { Verdict::ToName(name.clone()) }
}

/// The headers set on requests to `name`; of one that several rules set, the last rule's.
fn headers_for(egress: &Egress, name: &DomainName) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (header, value) in egress.rules_for(name).iter().flat_map(|rule| &rule.headers) {
        // Both were checked when the rule was set.
        if let (Ok(header), Ok(mut value)) =
            (header.parse::<HeaderName>(), HeaderValue::try_from(value.as_str()))
        {
            value.set_sensitive(true);
            headers.insert(header, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use torpor_types::HeaderRule;

    use super::*;

    fn egress(allow: &[&str], deny: &[&str], rules: &[&str]) -> Egress {
        let rule = HeaderRule { headers: [("x-key".to_owned(), "1".to_owned())].into() };
        Egress {
            allow_out: allow.iter().map(|entry| entry.parse().unwrap()).collect(),
            deny_out: deny.iter().map(|entry| entry.parse().unwrap()).collect(),
            rules: rules.iter().map(|name| (name.parse().unwrap(), vec![rule.clone()])).collect(),
            ..Egress::default()
        }
    }

    fn tls(name: &str) -> Opening {
        Opening::Tls { name: Some(name.parse().unwrap()), is_http: true }
    }

    fn verdict(egress: &Egress, address: [u8; 4], opening: &Opening) -> Verdict {
        decide(egress, SocketAddrV4::new(Ipv4Addr::from(address), 443), opening).verdict
    }

    #[test]
    fn behind_a_denied_address_only_allowed_names_are_reached() {
        let egress = egress(&["*.example.com", "8.8.8.8"], &["0.0.0.0/0"], &[]);
        let to = |name: &str| Verdict::ToName(name.parse().unwrap());
        assert_eq!(verdict(&egress, [1, 1, 1, 1], &tls("a.example.com")), to("a.example.com"));
        for opening in [tls("example.com"), tls("evil.net"), Opening::Other, Opening::Http { name: None }] {
            assert_eq!(verdict(&egress, [1, 1, 1, 1], &opening), Verdict::Refuse, "{opening:?}");
        }
        // An allowed address is reached under any name, and nothing is resolved for it.
        for opening in [tls("evil.net"), tls("a.example.com"), Opening::Other] {
            assert_eq!(verdict(&egress, [8, 8, 8, 8], &opening), Verdict::AsAsked, "{opening:?}");
        }
    }

    #[test]
    fn a_rule_sets_headers_and_opens_nothing() {
        let open = egress(&[], &[], &["api.example.com"]);
        let closed = egress(&["other.example.com"], &["0.0.0.0/0"], &["api.example.com"]);
        let set = verdict(&open, [1, 1, 1, 1], &tls("api.example.com"));
        assert!(matches!(set, Verdict::WithHeaders { headers, .. } if headers["x-key"] == "1"));
        assert_eq!(verdict(&open, [1, 1, 1, 1], &tls("www.example.com")), Verdict::AsAsked);
        assert_eq!(verdict(&closed, [1, 1, 1, 1], &tls("api.example.com")), Verdict::Refuse);
        let other_protocol = Opening::Tls { name: Some("api.example.com".parse().unwrap()), is_http: false };
        assert_eq!(verdict(&open, [1, 1, 1, 1], &other_protocol), Verdict::AsAsked);
    }

    proptest! {
        #[test]
        fn nothing_is_reached_that_neither_address_nor_name_allows(
            address: [u8; 4], name in "(a|b)\\.(example|evil)\\.com", allow_block: bool, has_rule: bool,
        ) {
            let mut allow = vec!["*.example.com"];
            if allow_block {
                allow.push("128.0.0.0/1");
            }
            let rules = if has_rule { vec!["*.evil.com", "*.example.com"] } else { vec![] };
            let egress = egress(&allow, &["0.0.0.0/0"], &rules);
            let refused = verdict(&egress, address, &tls(&name)) == Verdict::Refuse;
            let allowed = name.ends_with("example.com") || (allow_block && address[0] >= 128);
            prop_assert_eq!(refused, !allowed);
        }
    }
}

//! Where no sandbox gets, whatever its policy, and what of that the operator opened.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// This host, private and shared ranges, link-local (cloud metadata lives there), benchmarks, multicast, reserved.
const OUT_OF_REACH: [Ipv4Net; 10] = [
    net(0, 0, 0, 0, 8),
    net(10, 0, 0, 0, 8),
    net(100, 64, 0, 0, 10),
    net(127, 0, 0, 0, 8),
    net(169, 254, 0, 0, 16),
    net(172, 16, 0, 0, 12),
    net(192, 0, 0, 0, 24),
    net(192, 168, 0, 0, 16),
    net(198, 18, 0, 0, 15),
    net(224, 0, 0, 0, 3),
];

/// Which addresses sandboxes may have a way to at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    opened: Vec<Ipv4Net>,
}

const fn net(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

// === impl Reach ===

impl Reach {
    /// Public addresses, and those of `opened` although they are private.
    pub fn opening(opened: &[Ipv4Net]) -> Self {
        Self { opened: Ipv4Net::aggregate(&opened.to_vec()) }
    }

    /// Whether there may be a way to `address`.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&address));
        within(&self.opened) || !within(&OUT_OF_REACH)
    }

    /// What the operator opened.
    pub(crate) fn opened(&self) -> &[Ipv4Net] {
        &self.opened
    }

    /// The nft expression that matches packets to where there is no way.
    pub(crate) fn beyond(&self) -> String {
        let out = destined_to(&OUT_OF_REACH);
        if self.opened.is_empty() { out } else { format!("{out} ip daddr != {}", set(&self.opened)) }
    }
}

/// The nft expression that matches packets to one of `nets`: nothing at all where these are all addresses.
pub(crate) fn destined_to(nets: &[Ipv4Net]) -> String {
    match nets.iter().any(|net| net.prefix_len() == 0) {
        true => String::new(),
        false => format!("ip daddr {}", set(nets)),
    }
}

fn set(nets: &[Ipv4Net]) -> String {
    let members: Vec<String> = nets.iter().map(Ipv4Net::to_string).collect();
    format!("{{ {} }}", members.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_out_of_reach_unless_opened() {
        let reach = Reach::opening(&["10.1.0.0/16".parse().unwrap(), "192.168.7.7/32".parse().unwrap()]);
        for (address, reached) in [
            ("8.8.8.8", true),
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("192.168.7.7", true),
            ("192.168.7.8", false),
            ("169.254.169.254", false),
            ("172.31.255.255", false),
            ("172.32.0.0", true),
            ("255.255.255.255", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(reach.contains(address.parse().unwrap()), reached, "{address}");
        }
        assert!(!Reach::default().contains("10.1.2.3".parse().unwrap()));
    }
}

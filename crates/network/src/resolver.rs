//! Which DNS server sandboxes use.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::NetworkOptions;

/// Where the host's resolvers are found, best first. With systemd-resolved, `/etc/resolv.conf` names a stub on
/// a loopback address, which no namespace reaches; the first file names the real ones.
const RESOLV_CONFS: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];

/// The DNS server sandboxes use: the configured one, or the host's first that they can reach.
pub(crate) fn resolver(options: &NetworkOptions) -> Option<Ipv4Addr> {
    match options.resolver {
        Some(address) => usable(address),
        None => RESOLV_CONFS
            .iter()
            .filter_map(|path| std::fs::read_to_string(Path::new(path)).ok())
            .find_map(|text| nameservers(&text).into_iter().find_map(usable)),
    }
}

/// Namespaces speak IPv4 only, and have a loopback of their own.
fn usable(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) if !v4.is_loopback() && !v4.is_unspecified() => Some(v4),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_a_namespace_can_reach_is_taken() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver ::1\nnameserver 127.0.0.53\n nameserver\t192.0.2.7 # x\nnameserver 192.0.2.8\n";
        assert_eq!(nameservers(text).len(), 4);
        let taken = nameservers(text).into_iter().find_map(usable);
        assert_eq!(taken, Some(Ipv4Addr::new(192, 0, 2, 7)));
    }

    #[test]
    fn a_configured_resolver_is_never_replaced_by_another() {
        let mut options = NetworkOptions::new("00000001".parse().unwrap());
        options.resolver = Some("127.0.0.1".parse().unwrap());
        assert_eq!(resolver(&options), None);
        options.resolver = Some("192.0.2.9".parse().unwrap());
        assert_eq!(resolver(&options), Some(Ipv4Addr::new(192, 0, 2, 9)));
    }
}

//! What a host offers, for `torpor doctor`.

use crate::host::nft_version;
use crate::inside::run;
use crate::{NetworkOptions, docker, resolver};

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingLevel {
    /// As it should be.
    Good,
    /// Sandboxes run, with less than they could have.
    Warning,
    /// Sandboxes cannot run.
    Error,
}

/// One thing found out about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: FindingLevel,
    /// What was found, and what to do about it.
    pub text: String,
}

/// Looks at the host without changing anything. Blocks for some milliseconds.
pub fn check(options: &NetworkOptions) -> Vec<Finding> {
    let mut findings = vec![tun(), nft(), dns(options), default_route()];
    if !rustix::process::geteuid().is_root() {
        findings.push(Finding::error("not root: sandbox networks need root".to_owned()));
        return findings;
    }
    findings.extend(forward_policy());
    findings
}

fn tun() -> Finding {
    match std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good("/dev/net/tun can be opened".to_owned()),
        Err(error) => Finding::error(format!(
            "/dev/net/tun cannot be opened ({error}): run as root, and load the kernel module with `modprobe tun`"
        )),
    }
}

fn nft() -> Finding {
    match nft_version() {
        Ok(version) => Finding::good(version),
        Err(error) => {
            Finding::error(format!("the program `nft` does not run ({error}): install the package nftables"))
        }
    }
}

fn dns(options: &NetworkOptions) -> Finding {
    match resolver::resolver(options) {
        Some(address) => Finding::good(format!("sandboxes resolve names with {address}")),
        None => Finding::warning(
            "no DNS server that sandboxes could reach (loopback and IPv6 addresses cannot be): set `resolver` in \
             the configuration"
                .to_owned(),
        ),
    }
}

fn default_route() -> Finding {
    // Columns: interface, destination, gateway, …; the default route has destination 0.
    let routes = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    match routes.lines().skip(1).find(|line| line.split_whitespace().nth(1) == Some("00000000")) {
        Some(line) => Finding::good(format!(
            "sandboxes reach the internet through {}",
            line.split_whitespace().next().unwrap_or("an interface")
        )),
        None => Finding::warning("the host has no default route: sandboxes have no internet".to_owned()),
    }
}

/// Other rules that drop what sandboxes send.
fn forward_policy() -> Option<Finding> {
    let dropping = dropping_forward_chains(&run("nft", &["list", "chains"]).ok()?);
    if dropping.is_empty() {
        return None;
    }
    let docker = docker::chain_exists().unwrap_or(false);
    let others: Vec<_> = dropping
        .into_iter()
        .filter(|table| !(docker && matches!(table.as_str(), "ip filter" | "ip6 filter")))
        .collect();
    Some(if others.is_empty() {
        Finding::good("Docker drops forwarded packets; the server adds exceptions to DOCKER-USER".to_owned())
    } else {
        Finding::warning(format!(
            "the firewall drops forwarded packets (table {}): sandboxes have no internet until it accepts packets \
             from and to the interfaces tp*",
            others.join(", table ")
        ))
    })
}

/// Tables with a chain that drops forwarded packets unless a rule accepts them, from `nft list chains`.
fn dropping_forward_chains(chains: &str) -> Vec<String> {
    let mut table = "";
    let mut found = Vec::new();
    for line in chains.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches('{').trim();
        } else if line.contains("hook forward") && line.contains("policy drop") && !table.starts_with("ip6 ")
        {
            found.push(table.to_owned());
        }
    }
    found
}

// === impl Finding ===

impl Finding {
    fn good(text: String) -> Self {
        Self { level: FindingLevel::Good, text }
    }

    fn warning(text: String) -> Self {
        Self { level: FindingLevel::Warning, text }
    }

    fn error(text: String) -> Self {
        Self { level: FindingLevel::Error, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firewall_that_drops_what_sandboxes_send_is_found() {
        let chains = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n\
            table inet own {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t}\n}\n";
        assert_eq!(dropping_forward_chains(chains), ["ip filter"]);
        assert!(dropping_forward_chains("table inet x {\n\tchain y {\n\t}\n}\n").is_empty());
    }
}

//! Docker on the same host.
//!
//! Docker sets the policy of iptables' `FORWARD` chain to drop, for everybody's packets, and offers the chain `DOCKER-USER` for exceptions. A
//! packet has to be accepted by every table it passes, so these exceptions only undo Docker's policy: what
//! sandboxes must not reach is still dropped by Torpor's own table.

use std::io;

use crate::Instance;
use crate::inside::run;
use crate::rules::{host_table_name, uplink_prefix};

const CHAIN: &str = "DOCKER-USER";

/// Lets the packets of an instance pass Docker's policy, if Docker is there.
pub(crate) fn accept(instance: &Instance) -> io::Result<()> {
    if !chain_exists()? {
        return Ok(());
    }
    for rule in wanted(instance) {
        let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
        if iptables("-C", &rule).is_err() {
            iptables("-I", &rule)?;
        }
    }
    Ok(())
}

/// Takes the exceptions of an instance back.
pub(crate) fn remove(instance: &Instance) -> io::Result<()> {
    if !chain_exists()? {
        return Ok(());
    }
    for rule in wanted(instance) {
        let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
        while iptables("-C", &rule).is_ok() {
            iptables("-D", &rule)?;
        }
    }
    Ok(())
}

/// The exceptions of an instance that are in force.
pub(crate) fn rules(instance: &Instance) -> io::Result<Vec<String>> {
    if !chain_exists()? {
        return Ok(Vec::new());
    }
    let name = host_table_name(instance);
    let rules = run("iptables", &["-w", "-S", CHAIN])?;
    Ok(rules.lines().filter(|rule| rule.contains(&name)).map(str::to_owned).collect())
}

/// Whether Docker's chain is there. Without the program `iptables` there is no Docker.
pub(crate) fn chain_exists() -> io::Result<bool> {
    match run("iptables", &["-w", "-S", CHAIN]) {
        Ok(_) => Ok(true),
        // Not installed, or no such chain.
        Err(_) => Ok(false),
    }
}

fn wanted(instance: &Instance) -> [Vec<String>; 2] {
    let interfaces = format!("{}+", uplink_prefix(instance));
    let name = host_table_name(instance);
    let words = |text: String| text.split(' ').map(str::to_owned).collect();
    [
        words(format!("-i {interfaces} -m comment --comment {name} -j ACCEPT")),
        words(format!(
            "-o {interfaces} -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment {name} -j ACCEPT"
        )),
    ]
}

fn iptables(operation: &str, rule: &[&str]) -> io::Result<()> {
    run("iptables", &[&["-w", operation, CHAIN], rule].concat()).map(drop)
}

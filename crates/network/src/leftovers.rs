//! What an instance has on the host.

use std::io;

use crate::inside::run;
use crate::{Instance, docker, rules};

/// One thing that an instance has on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// An nft table.
    Table(String),
    /// An interface: the host's end of an uplink.
    Uplink(String),
    /// A rule in Docker's chain for users, as `iptables -S` prints it.
    DockerRule(String),
}

/// The rules of `instance` in the calling thread's namespace.
pub(crate) fn rules(instance: &Instance) -> io::Result<Vec<Leftover>> {
    let table = rules::host_table_name(instance);
    let tables = run("nft", &["list", "tables"])?;
    let mut found = Vec::new();
    if tables.lines().any(|line| line.trim() == format!("table inet {table}")) {
        found.push(Leftover::Table(table));
    }
    found.extend(docker::rules(instance)?.into_iter().map(Leftover::DockerRule));
    Ok(found)
}

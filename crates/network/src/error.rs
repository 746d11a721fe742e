//! What can go wrong, one enum per operation.

use std::io;

/// [`crate::Network::start`] failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not root.
    #[error(
        "setting up sandbox networks needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN): run the server as root"
    )]
    NotRoot,
    /// No tap devices.
    #[error("/dev/net/tun cannot be opened ({0}): load the kernel module with `modprobe tun`")]
    NoTun(#[source] io::Error),
    /// No nft.
    #[error("the program `nft` is missing: install the package nftables")]
    NoNft,
    /// The pool holds no pair of addresses.
    #[error("the address pool {0} is too small: it needs a prefix of /30 or shorter")]
    PoolTooSmall(ipnet::Ipv4Net),
    /// Something the kernel was asked for.
    #[error("{what} failed: {cause}")]
    Step {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        cause: String,
    },
}

/// [`crate::Network::create`] failed. Nothing of the namespace is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Every address pair is in use.
    #[error(
        "all {slots} address pairs of the pool {pool} are in use: pause or kill sandboxes, or configure a larger pool"
    )]
    PoolExhausted {
        /// The pool.
        pool: ipnet::Ipv4Net,
        /// How many sandboxes it serves.
        slots: u32,
    },
    /// Something the kernel was asked for.
    #[error("could not make a sandbox network: {what} failed: {cause}")]
    Step {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        cause: String,
    },
}

/// [`crate::Network::adopt`] failed.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The process is gone, or its namespace cannot be opened.
    #[error("the network namespace of process {pid} cannot be opened: {cause}")]
    NoProcess {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The namespace is not one of Torpor's.
    #[error("the network namespace of process {pid} has no uplink of this server: {reason}")]
    NotOurs {
        /// The process.
        pid: u32,
        /// What was found instead.
        reason: String,
    },
    /// Something the kernel was asked for.
    #[error("could not adopt the network of process {pid}: {what} failed: {cause}")]
    Step {
        /// The process.
        pid: u32,
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        cause: String,
    },
}

/// Changing what a sandbox may reach failed; the former rules are still in force.
#[derive(Debug, thiserror::Error)]
#[error("the egress rules could not be changed (the former ones are still in force): {cause}")]
pub struct EgressError {
    pub(crate) cause: String,
}

/// Removing rules or interfaces failed.
#[derive(Debug, thiserror::Error)]
#[error("{what} could not be removed: {cause}")]
pub struct RemoveError {
    pub(crate) what: String,
    pub(crate) cause: String,
}

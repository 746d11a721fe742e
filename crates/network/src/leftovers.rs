//! What an instance has on the host.

/// One thing that an instance has on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// An nft table.
    Table(String),
    /// An interface: the host's end of an uplink.
    Uplink(String),
    /// A rule in Docker's chain for users.
    DockerRule(String),
}

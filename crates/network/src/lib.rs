//! Network namespaces, taps and egress rules of sandboxes.
//!
//! Every machine lives in a network namespace of its own. Inside, all namespaces look the same: a tap device
//! `tap0` with the guest behind it ([`GUEST_ADDRESS`], [`GATEWAY_ADDRESS`], fixed MAC addresses), so that a snapshot
//! taken in one namespace resumes in any other, and an *uplink*, one end of a veth pair whose other end is on the host.
//!
//! ```text
//!   guest eth0 10.11.0.2 ── tap0 10.11.0.1 [ namespace ] uplink 10.201.x.y ── tp<instance><slot> [ host ] ── internet
//!                                 │ DNAT :53 → resolver        /31
//!                                 └ masquerade, egress rules                masquerade, drop everything private
//! ```
//!
//! A namespace has no name and no bind mount. It is held by the [`Namespace`] handle and by the process of the machine,
//! and vanishes, with tap, veth pair and rules, when both are gone. After a restart of the server
//! [`Network::adopt`] finds it again through `/proc/PID/ns/net`.
//!
//! The way *out* (egress) is guarded twice: in the namespace, where rules of one sandbox can be changed
//! while it runs ([`EgressPolicy`]), and on the host (table `inet torpor_<instance>`), which
//! holds even if a machine's process is taken over. The second guard knows no policies, only what no sandbox may reach
//! ([`Reach`]). Where addresses are not enough to decide, the namespace's rules take connections to the egress proxy, which
//! listens there ([`NamespaceSockets`]). The way *in* needs no host address at all:
//! [`Connector`] makes its sockets inside the namespace.

mod check;
mod connector;
mod docker;
mod error;
mod host;
mod inside;
mod leftovers;
mod links;
mod namespace;
mod options;
mod policy;
mod reach;
mod resolver;
mod rules;
mod slot;

pub use check::{Finding, FindingLevel, check};
pub use connector::{Connector, NamespaceSockets};
pub use error::{AdoptError, CreateError, EgressError, RemoveError, StartError};
pub use host::Network;
pub use leftovers::Leftover;
pub use namespace::Namespace;
pub use options::{DEFAULT_POOL, Instance, NetworkOptions, ParseInstanceError};
pub use policy::{EgressPolicy, NameService};
pub use reach::Reach;

use std::net::Ipv4Addr;

/// The guest's address, the same in every namespace.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 2);
/// The guest's gateway and DNS server: `tap0` in the namespace.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 1);
/// Prefix length of the network between guest and gateway.
pub const GUEST_PREFIX_LEN: u8 = 30;
/// MAC address of the guest's `eth0`.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x54, 0x4f, 0x52, 0x00, 0x02];
/// MAC address of `tap0`; fixed, so that the guest's ARP cache stays right across pause and resume.
pub const TAP_MAC: [u8; 6] = [0x02, 0x54, 0x4f, 0x52, 0x00, 0x01];
/// Name of the tap device in every namespace.
pub const TAP_NAME: &str = "tap0";
/// Port on which the agent in the guest listens.
pub const AGENT_PORT: u16 = 49983;
/// Port at [`GATEWAY_ADDRESS`] to which the guest's connections are redirected when the egress proxy has to see them.
/// While nobody listens there, they are refused.
pub const PROXY_PORT: u16 = 15001;
/// Port at [`GATEWAY_ADDRESS`], UDP and TCP, to which the guest's DNS queries are redirected when only some names may be
/// resolved.
pub const NAMES_PORT: u16 = 15053;
/// MTU of the guest's interface, in bytes.
pub const MTU: u32 = 1500;

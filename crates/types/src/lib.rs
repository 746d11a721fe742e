//! Words every Torpor crate shares: identifiers, sizes, the accelerator.
//!
//! A *sandbox* is one isolated Linux machine with an id; a *machine* is the virtual machine (one QEMU process) that
//! carries a running sandbox; a *snapshot* is an immutable, complete set of memory, disk, device state and manifest;
//! a *template* is a named starting point whose builds are snapshots.

mod id;
mod network;
mod shape;

pub use id::{MachineId, ParseIdError, SandboxId, SnapshotId, TeamId, TemplateId};
pub use network::{
    Block, Destination, DomainName, DomainPattern, Egress, EgressProxy, HeaderRule, Ingress, NetworkConfig,
    ParseBlockError, ParseDestinationError, ParseDomainError, ParseProxyAddressError, ProxyAddress, ProxyTls,
};
pub use shape::{Accelerator, GUEST_PAGE_BYTES, MIB, Shape};

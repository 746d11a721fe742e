//! The network of one machine.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::{Connector, EgressError, EgressPolicy};

/// The network of one machine: its namespace and the tap in it.
///
/// Dropping the handle (and every [`Connector`] of it) while no process lives in the namespace removes it
/// with everything in it.
#[derive(Debug)]
pub struct Namespace {
    pub(crate) netns: Arc<OwnedFd>,
    pub(crate) tap: Option<OwnedFd>,
}

// === impl Namespace ===

impl Namespace {
    /// The namespace, for `setns` by the thread that starts the machine's process.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The tap's file descriptor, for the machine's process; `None` once taken, and in an adopted namespace.
    ///
    /// The tap exists as long as this descriptor (or a copy of it) is open. It has virtio-net headers
    /// (`IFF_VNET_HDR`).
    pub fn take_tap(&mut self) -> Option<OwnedFd> {
        self.tap.take()
    }

    /// A handle that connects to ports in the guest.
    pub fn connector(&self) -> Connector {
        Connector { netns: self.netns.clone() }
    }

    /// Changes what the sandbox may reach; also cuts connections that the new policy does not allow.
    pub async fn set_egress(&self, policy: &EgressPolicy) -> Result<(), EgressError> {
        let _ = policy;
        Err(EgressError { cause: String::new() })
    }
}

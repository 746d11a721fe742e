//! The host's side: table, forwarding, addresses.

use std::sync::Arc;

use crate::{AdoptError, CreateError, Leftover, Namespace, NetworkOptions, RemoveError, StartError};

/// The networks of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: NetworkOptions,
}

// === impl Network ===

impl Network {
    /// Puts the host's rules in place. What an earlier run of the same instance left is replaced
    /// in one step, so that running sandboxes are never without rules.
    ///
    /// The *host* is the network namespace of the calling thread. Needs a Tokio runtime.
    pub async fn start(options: NetworkOptions) -> Result<Self, StartError> {
        Ok(Self(Arc::new(Inner { options })))
    }

    /// Makes a new namespace with tap, uplink and rules.
    pub async fn create(&self) -> Result<Namespace, CreateError> {
        Err(CreateError::PoolExhausted { pool: self.0.options.pool, slots: 0 })
    }

    /// Finds the namespace of a machine that an earlier server of the same instance started.
    pub async fn adopt(&self, pid: u32) -> Result<Namespace, AdoptError> {
        Err(AdoptError::NotOurs { pid, reason: String::new() })
    }

    /// Removes the host's rules if no sandbox of this instance has an uplink any more; says whether it did.
    /// For an orderly stop: machines that outlive the server keep their rules.
    pub async fn remove_if_unused(&self) -> Result<bool, RemoveError> {
        Ok(true)
    }

    /// Removes the uplinks of this instance that no [`Namespace`] of this process owns: call it after the last
    /// [`Network::adopt`]. Says how many there were.
    pub async fn remove_strays(&self) -> Result<usize, RemoveError> {
        Ok(0)
    }

    /// Removes everything of this instance from the host, whether in use or not.
    pub async fn remove_all(&self) -> Result<(), RemoveError> {
        Ok(())
    }

    /// What of this instance is on the host now: table, uplinks, other rules.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>, RemoveError> {
        Ok(Vec::new())
    }
}

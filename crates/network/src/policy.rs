//! What one sandbox may reach.

use serde::{Deserialize, Serialize};

/// What one sandbox may reach. Whatever it says, private ranges, other sandboxes and the host stay out of reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EgressPolicy {
    /// Whether the sandbox reaches the internet, name resolution included (a resolver is a way out, too).
    pub allow_internet: bool,
}

// === impl EgressPolicy ===

impl Default for EgressPolicy {
    fn default() -> Self {
        Self { allow_internet: true }
    }
}

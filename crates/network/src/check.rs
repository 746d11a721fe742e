//! What a host offers, for `torpor doctor`.

use crate::NetworkOptions;

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

/// Looks at the host without changing anything.
pub fn check(options: &NetworkOptions) -> Vec<Finding> {
    let _ = options;
    Vec::new()
}

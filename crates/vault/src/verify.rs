//! Is a snapshot still what was published?

use crate::ReadError;

/// What [`crate::Vault::verify`] looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were read and hashed; holes are not.
    pub bytes_read: u64,
}

/// A snapshot is not what was published.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It, or a part, cannot be read or is visibly wrong.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A chunk has changed.
    #[error("{file} differs from what was published, first at byte {offset} (in the MiB that starts there)")]
    Changed {
        /// `memory` or `disk`.
        file: &'static str,
        /// Start of the first chunk that differs.
        offset: u64,
    },
}

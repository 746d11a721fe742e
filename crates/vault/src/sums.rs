//! Tables of hashes.

/// How much of a file one hash covers, in bytes.
pub const CHUNK_BYTES: u64 = 1 << 20;

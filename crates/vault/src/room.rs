//! How much space the vault has.

/// How much space the vault has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Size of the vault's file system.
    pub total_bytes: u64,
    /// What can still be written: in an image file, not more than the file system around it has free.
    pub free_bytes: u64,
    /// What is kept free.
    pub reserve_bytes: u64,
}

// === impl Room ===

impl Room {
    /// Free bytes beyond the reserve.
    pub fn available_bytes(&self) -> u64 {
        self.free_bytes.saturating_sub(self.reserve_bytes)
    }
}

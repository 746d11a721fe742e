//! What the allocator keeps for later.

/// Gives memory that was freed back to the kernel: call it after work that needed much, once.
///
/// glibc keeps freed memory that lies below memory in use.
pub fn give_back_freed_memory() {
    // SAFETY: it takes no pointers, locks the arenas it works on, and gives back only pages that hold nothing in use.
    unsafe { libc::malloc_trim(0) };
}

//! Network namespaces, which belong to threads.

use std::io;

use rustix::thread::UnshareFlags;

/// Moves the calling thread into a new, empty network namespace.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: only CLONE_FILES is unsafe to unshare (descriptors would differ between threads); this unshares the
    // network namespace alone.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

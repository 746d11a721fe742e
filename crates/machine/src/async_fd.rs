//! Descriptors Tokio waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime.
pub(crate) fn async_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "only for types that may give up their descriptor early, which OwnedFd does not"
    )]
    AsyncFd::new(fd)
}

//! Talking to the library preloaded into QEMU. The protocol is described in crates/ram-map.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use torpor_sys::PageRun;

use super::process::io_error;
use crate::async_fd::async_fd;
use crate::vmm::{GuestRam, VmmError};

/// How long an answer may take: it is one system call.
const LIMIT: Duration = Duration::from_secs(10);

/// Our end of the socket to the library.
#[derive(Debug)]
pub(super) struct RamSocket(AsyncFd<OwnedFd>);

/// The empty file QEMU is told to use as RAM.
pub(super) fn placeholder(bytes: u64) -> io::Result<OwnedFd> {
    let file = memfd_create("guest-ram", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, bytes)?;
    Ok(file)
}

// === impl RamSocket ===

impl RamSocket {
    /// Our end and the library's.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self(async_fd(ours)?), theirs))
    }

    /// Where QEMU mapped guest RAM.
    pub(super) async fn locate(&self) -> Result<GuestRam, VmmError> {
        self.ask("finding guest RAM", b"w", &[]).await
    }

    /// Maps `memory` privately over guest RAM.
    pub(super) async fn map(&self, memory: &File) -> Result<GuestRam, VmmError> {
        self.ask("mapping the snapshot's memory", b"m", &[memory.as_fd()]).await
    }

    /// Has the kernel remember which pages are written from now on.
    pub(super) async fn track(&self) -> Result<GuestRam, VmmError> {
        self.ask("tracking what the guest writes", b"t", &[]).await
    }

    /// Has it forget about that.
    pub(super) async fn untrack(&self) -> Result<GuestRam, VmmError> {
        self.ask("tracking no more what the guest writes", b"u", &[]).await
    }

    /// Has QEMU forget what it translated from `stale` pages, and keep all else through the load that follows.
    pub(super) async fn keep_translations(&self, stale: &[PageRun]) -> Result<GuestRam, VmmError> {
        let doing = "keeping what was translated";
        let ranges = || -> io::Result<File> {
            let words = stale.iter().flat_map(|run| [run.offset, run.len]);
            let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
            let file = File::from(memfd_create("stale-pages", MemfdFlags::CLOEXEC)?);
            file.write_all_at(&bytes, 0)?;
            Ok(file)
        };
        let ranges = ranges().map_err(|error| io_error(doing, error))?;
        self.ask(doing, b"k", &[ranges.as_fd()]).await
    }

    /// Lets QEMU forget its translations again when it wants to.
    pub(super) async fn loaded(&self) -> Result<GuestRam, VmmError> {
        self.ask("ending a load", b"l", &[]).await
    }

    async fn ask(
        &self,
        doing: &'static str,
        request: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<GuestRam, VmmError> {
        let exchange = async {
            self.0
                .async_io(Interest::WRITABLE, |socket| torpor_sys::send_with_fds(socket, request, fds))
                .await?;
            let mut answer = [0_u8; 24];
            let received = self.0.async_io(Interest::READABLE, |socket| {
                let (received, _) = rustix::net::recv(socket, answer.as_mut_slice(), RecvFlags::empty())?;
                Ok(received)
            });
            if received.await? != answer.len() {
                // Also when QEMU runs without the library: nobody holds the other end.
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the preloaded library is not there; where nothing can be preloaded, the setting vault_memory = \"shared\" does \
                     without",
                ));
            }
            Ok(answer)
        };
        let answer = tokio::time::timeout(LIMIT, exchange)
            .await
            .map_err(|_| VmmError::Timeout { doing, within: LIMIT })?
            .map_err(|error| io_error(doing, error))?;
        let word = |i: usize| {
            answer[8 * i..8 * i + 8].iter().rev().fold(0, |word: u64, byte| word << 8 | u64::from(*byte))
        };
        match i32::try_from(word(0)) {
            Ok(0) => Ok(GuestRam { address: word(1), len: word(2) }),
            Ok(errno) => Err(io_error(doing, io::Error::from_raw_os_error(errno))),
            Err(_) => Err(io_error(doing, io::ErrorKind::InvalidData.into())),
        }
    }
}

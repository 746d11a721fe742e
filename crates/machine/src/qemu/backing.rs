//! What QEMU is given as guest RAM: a file of the machine's own, or a placeholder and the library that makes it private.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;

use super::ram::{self, RamSocket};
use super::{Qemu, child_fd, copy};
use crate::vmm::{GuestRam, Place, VmmError};

/// Our end of it.
pub(super) enum Backing {
    /// The library answers on this socket.
    Private(RamSocket),
    /// QEMU alone.
    Shared,
}

// === impl Backing ===

impl Backing {
    /// Adds to the command and its descriptors what belongs to guest RAM.
    pub(super) fn prepare(
        qemu: &Qemu,
        place: &Place<'_>,
        command: &mut Command,
        fds: &mut Vec<(OwnedFd, i32)>,
    ) -> io::Result<Self> {
        if let Some(ram) = place.ram {
            fds.push((copy(ram)?, child_fd::RAM));
            return Ok(Self::Shared);
        }
        let (ours, theirs) = RamSocket::pair()?;
        fds.push((ram::placeholder(place.shape.memory_bytes())?, child_fd::RAM));
        fds.push((theirs, child_fd::RAM_SOCKET));
        // By descriptor, as everything: the data directory may lie where QEMU's user cannot look.
        fds.push((File::open(&qemu.ram_map)?.into(), child_fd::RAM_MAP));
        command.env("LD_PRELOAD", format!("/proc/self/fd/{}", child_fd::RAM_MAP));
        command.env("TORPOR_RAM_FD", child_fd::RAM.to_string());
        command.env("TORPOR_RAM_SOCKET", child_fd::RAM_SOCKET.to_string());
        Ok(Self::Private(ours))
    }

    /// Where private RAM is mapped, and the socket to the library.
    pub(super) async fn locate(self) -> Result<(Option<GuestRam>, Option<RamSocket>), VmmError> {
        match self {
            Self::Private(socket) => Ok((Some(socket.locate().await?), Some(socket))),
            Self::Shared => Ok((None, None)),
        }
    }
}

//! Pseudo terminals.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::OFlags,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use torpor_envd_api::process::PTY;

/// The size when the client asks for a terminal without saying how large.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// The two ends of a pseudo terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The agent's end; does not block.
    pub(super) controller: OwnedFd,
    /// The process's end.
    pub(super) user: OwnedFd,
}

/// Opens a pseudo terminal of that size for that user.
pub(super) fn open(pty: &PTY, owner: Option<u32>) -> io::Result<Terminal> {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&controller)?;
    // Not opened by its path: the agent's /dev/pts need not be the process's.
    let user =
        ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    if let Some(uid) = owner {
        // So that the process can open its terminal by name, as screen, tmux and sudo do.
        rustix::fs::fchown(&user, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    }
    resize(&controller, pty)?;
    let flags = rustix::fs::fcntl_getfl(&controller)?;
    rustix::fs::fcntl_setfl(&controller, flags | OFlags::NONBLOCK)?;
    Ok(Terminal { controller, user })
}

/// Changes the size; the process gets `SIGWINCH`.
pub(super) fn resize(controller: &OwnedFd, pty: &PTY) -> io::Result<()> {
    let cells = |asked: u32, default: u16| match asked {
        0 => default,
        asked => u16::try_from(asked).unwrap_or(u16::MAX),
    };
    let (cols, rows) = (cells(pty.size.cols, DEFAULT_SIZE.0), cells(pty.size.rows, DEFAULT_SIZE.1));
    Ok(tcsetwinsize(controller, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?)
}

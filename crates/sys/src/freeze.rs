//! Freezing a file system: flushed to its disk, and written by nobody until it is thawed (ioctl_fsfreeze in linux/fs.h).

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `FIFREEZE` of linux/fs.h.
const FREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
/// `FITHAW` of linux/fs.h.
const THAW: Opcode = opcode::read_write::<i32>(b'X', 120);

/// Flushes the file system `mount_point` is on and freezes it: whoever writes to it waits. No harm if it is frozen.
///
/// Needs `CAP_SYS_ADMIN`; `EOPNOTSUPP` where the file system cannot be frozen.
pub fn freeze(mount_point: &Path) -> io::Result<()> {
    let mut unused = 0_i32;
    // SAFETY: the kernel defines the request with an int argument, which it neither reads nor writes.
    let done = unsafe { ioctl(File::open(mount_point)?, Updater::<FREEZE, i32>::new(&mut unused)) };
    match done {
        Err(Errno::BUSY) => Ok(()),
        other => Ok(other?),
    }
}

/// Lets writers go on. No harm if the file system is not frozen.
pub fn thaw(mount_point: &Path) -> io::Result<()> {
    let mut unused = 0_i32;
    // SAFETY: as above.
    let done = unsafe { ioctl(File::open(mount_point)?, Updater::<THAW, i32>::new(&mut unused)) };
    match done {
        Err(Errno::INVAL) => Ok(()),
        other => Ok(other?),
    }
}

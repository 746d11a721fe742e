//! Tap devices: network interfaces whose wire is a file descriptor.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Setter, ioctl};

/// The kernel's `struct ifreq`, as far as `TUNSETIFF` reads it (40 bytes).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const TUNSETIFF: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<i32>(b'T', 202);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Makes the tap device `name` in the calling thread's network namespace, with virtio-net headers and without packet
/// information. It exists until the descriptor, and every copy of it, is closed.
pub fn create_tap(name: &str) -> io::Result<OwnedFd> {
    let mut request =
        InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    // One byte is left for the terminating zero.
    if name.is_empty() || name.len() >= request.name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface names have 1 to 15 bytes"));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let tun =
        rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, reads name and flags and writes the name back; the request is
    // as large as the kernel's struct and lives until the call returns.
    unsafe { ioctl(&tun, Setter::<TUNSETIFF, InterfaceRequest>::new(request))? };
    Ok(tun)
}

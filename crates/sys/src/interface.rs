//! Bringing up a network interface with the classic socket calls.
//!
//! They are a dozen lines and four system calls; a netlink library would be most of what a small program like PID 1
//! of a guest consists of.

use std::{io, mem, net::Ipv4Addr, os::fd::OwnedFd};

use rustix::{
    ioctl::{Opcode, Setter, ioctl},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

/// A socket to change IPv4 interfaces and routes with. Needs `CAP_NET_ADMIN`.
#[derive(Debug)]
pub struct Interfaces {
    socket: OwnedFd,
}

const SET_FLAGS: Opcode = libc::SIOCSIFFLAGS as Opcode;
const SET_ADDRESS: Opcode = libc::SIOCSIFADDR as Opcode;
const SET_NETMASK: Opcode = libc::SIOCSIFNETMASK as Opcode;
const SET_MTU: Opcode = libc::SIOCSIFMTU as Opcode;
const ADD_ROUTE: Opcode = libc::SIOCADDRT as Opcode;

// === impl Interfaces ===

impl Interfaces {
    /// Opens the socket.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// Brings the interface up.
    pub fn up(&self, name: &str) -> io::Result<()> {
        let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.set::<SET_FLAGS>(name, libc::__c_anonymous_ifr_ifru { ifru_flags: flags })
    }

    /// Gives the interface its address and the length of its network's prefix in bits.
    pub fn set_address(&self, name: &str, address: Ipv4Addr, prefix: u32) -> io::Result<()> {
        let mask = u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0);
        let address = libc::__c_anonymous_ifr_ifru { ifru_addr: socket_address(address) };
        self.set::<SET_ADDRESS>(name, address)?;
        let mask = libc::__c_anonymous_ifr_ifru { ifru_netmask: socket_address(Ipv4Addr::from_bits(mask)) };
        self.set::<SET_NETMASK>(name, mask)
    }

    /// Sets the largest packet, in bytes.
    pub fn set_mtu(&self, name: &str, bytes: u16) -> io::Result<()> {
        self.set::<SET_MTU>(name, libc::__c_anonymous_ifr_ifru { ifru_mtu: i32::from(bytes) })
    }

    /// Sends what is for no known network to `gateway`. One that exists already is fine.
    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: the type is plain data for which all zeros is a value: no device name, no metric.
        let mut route: libc::rtentry = unsafe { mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: the kernel reads one `rtentry` from the pointer, which the setter passes; its one pointer is null.
        let added = unsafe { ioctl(&self.socket, Setter::<ADD_ROUTE, libc::rtentry>::new(route)) };
        match added {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    fn set<const OPCODE: Opcode>(&self, name: &str, value: libc::__c_anonymous_ifr_ifru) -> io::Result<()> {
        let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: value };
        if name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the interface's name is too long"));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: each opcode used here makes the kernel read one `ifreq` from the pointer, which the setter passes.
        unsafe { ioctl(&self.socket, Setter::<OPCODE, libc::ifreq>::new(request)) }?;
        Ok(())
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_laid_out_as_the_kernel_reads_it() {
        let address = socket_address(Ipv4Addr::new(10, 11, 0, 200));
        assert_eq!(address.sa_family, 2);
        assert_eq!(address.sa_data[..7], [0, 0, 10, 11, 0, 200_u8 as libc::c_char, 0]);
    }
}

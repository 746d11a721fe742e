//! The guest's network: one link to the host, the same in every sandbox.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use rustix::event::{Timespec, poll};
use torpor_sys::interface::Interfaces;

use super::{BootError, Doing};
use crate::init::HOST_ADDRESS;

const LINK: &str = "eth0";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 2);
const PREFIX: u32 = 30;
const MTU: u16 = 1500;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How long the network card's driver may take to find it.
const LINK_PATIENCE: Duration = Duration::from_secs(10);
const LINK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Brings up the loopback interface and the link to the host.
pub(super) fn bring_up() -> Result<(), BootError> {
    let interfaces = Interfaces::open().doing("opening a socket")?;
    interfaces.up("lo").doing("bringing up lo")?;
    wait_for_link()?;
    interfaces.set_mtu(LINK, MTU).doing(format_args!("setting the MTU of {LINK}"))?;
    interfaces.set_address(LINK, ADDRESS, PREFIX).doing(format_args!("setting the address of {LINK}"))?;
    interfaces.up(LINK).doing(format_args!("bringing up {LINK}"))?;
    interfaces.add_default_route(HOST_ADDRESS).doing("setting the default route")
}

/// Points the guest's resolver at the host. Replaces a symbolic link, which in many templates leads nowhere.
pub(super) fn write_resolv_conf() -> Result<(), BootError> {
    let wanted = format!("nameserver {HOST_ADDRESS}\n");
    if fs::read_to_string(RESOLV_CONF).is_ok_and(|present| present == wanted) {
        return Ok(());
    }
    let temporary = format!("{RESOLV_CONF}.torpor");
    fs::write(&temporary, wanted)
        .and_then(|()| fs::rename(&temporary, RESOLV_CONF))
        .doing(format_args!("writing {RESOLV_CONF}"))
}

/// Drivers usually have found their devices when their module is loaded, so this usually does not wait.
fn wait_for_link() -> Result<(), BootError> {
    let node = Path::new("/sys/class/net").join(LINK);
    let deadline = Instant::now() + LINK_PATIENCE;
    while !node.exists() {
        if Instant::now() > deadline {
            let source = io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it did not appear within {} s; is virtio_net loaded?", LINK_PATIENCE.as_secs()),
            );
            return Err(source).doing(format_args!("waiting for {LINK}"));
        }
        // sysfs cannot be watched.
        let _ = poll(&mut [], Some(&LINK_INTERVAL));
    }
    Ok(())
}

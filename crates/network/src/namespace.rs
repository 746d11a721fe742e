//! The network of one machine: making it, finding it again, changing its rules.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::connector::Sockets;
use crate::host::Host;
use crate::inside::{current, inside, load_rules, on_thread};
use crate::links::Links;
use crate::rules::{UPLINK_NAME, namespace_table};
use crate::slot::HeldSlot;
use crate::{
    AdoptError, Connector, CreateError, EgressError, EgressPolicy, GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC,
    GUEST_PREFIX_LEN, NamespaceSockets, Reach, TAP_MAC, TAP_NAME,
};

/// The network of one machine: its namespace and the tap in it.
///
/// Dropping the handle (and every [`Connector`] of it) while no process lives in the namespace removes it
/// with everything in it.
#[derive(Debug)]
pub struct Namespace {
    netns: Arc<OwnedFd>,
    tap: Option<OwnedFd>,
    sockets: Sockets,
    resolver: Option<std::net::Ipv4Addr>,
    reach: Reach,
    uplink: String,
    _slot: HeldSlot,
}

/// What the thread that makes a namespace brings back before it loads the rules.
struct Made {
    netns: OwnedFd,
    tap: OwnedFd,
    links: Links,
}

// === impl Namespace ===

impl Namespace {
    /// The namespace, for `setns` by the thread that starts the machine's process.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The tap's file descriptor, for the machine's process; `None` once taken, and in an adopted namespace.
    ///
    /// The tap exists as long as this descriptor (or a copy of it) is open. It has virtio-net headers
    /// (`IFF_VNET_HDR`) and does not block.
    pub fn take_tap(&mut self) -> Option<OwnedFd> {
        self.tap.take()
    }

    /// A handle that connects to ports in the guest.
    pub fn connector(&self) -> Connector {
        Connector { sockets: self.sockets() }
    }

    /// Makes sockets that belong to the namespace, for the egress proxy.
    pub fn sockets(&self) -> NamespaceSockets {
        NamespaceSockets { netns: self.netns.clone(), sockets: self.sockets.clone() }
    }

    /// Name of the uplink's end on the host; while it exists, so does the namespace.
    pub fn uplink(&self) -> &str {
        &self.uplink
    }

    /// Changes what the sandbox may reach; also cuts connections that the new policy does not allow.
    pub async fn set_egress(&self, policy: &EgressPolicy) -> Result<(), EgressError> {
        let rules = namespace_table(policy, self.resolver, &self.reach);
        inside(self.netns.clone(), move || load_rules(&rules))
            .await
            .map_err(|error: io::Error| EgressError { cause: error.to_string() })
    }

    pub(crate) async fn create(host: &Host) -> Result<Self, CreateError> {
        let begun = Instant::now();
        let in_use =
            host.addresses().await.map_err(|e| CreateError::step("listing the host's addresses", e))?;
        let slot = host.slots.take(&in_use).ok_or_else(|| CreateError::PoolExhausted {
            pool: host.options.pool,
            slots: host.slots.count(),
        })?;

        // The rules name interfaces that need not exist yet: nft works while the links are made.
        let (made, making) = oneshot::channel();
        let rules = namespace_table(&host.options.egress, host.resolver, &host.options.reach);
        let loading = tokio::spawn(on_thread(move || {
            let netns = make_namespace()?;
            // Dropped by a receiver that gave up; then the rules are in vain, too.
            let _ = made.send(netns);
            load_rules(&rules)
        }));
        let Ok(Made { netns, tap, links }) = making.await else {
            return Err(CreateError::step("making the namespace", join(loading).await));
        };
        let wiring = wire(host, &slot, &netns, &links);
        let (wired, loaded) = tokio::join!(wiring, loading);
        wired?;
        match loaded {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(CreateError::step("loading the rules", error)),
            Err(error) => return Err(CreateError::step("loading the rules", error)),
        }
        let uplink = host.slots.uplink_name(slot.slot);
        tracing::debug!(uplink, ms = begun.elapsed().as_secs_f64() * 1e3, "made a sandbox network");
        Ok(Self {
            netns: Arc::new(netns),
            tap: Some(tap),
            sockets: host.sockets.clone(),
            resolver: host.resolver,
            reach: host.options.reach.clone(),
            uplink,
            _slot: slot,
        })
    }

    pub(crate) async fn adopt(host: &Host, pid: u32) -> Result<Self, AdoptError> {
        let netns = std::fs::File::open(format!("/proc/{pid}/ns/net"))
            .map_err(|cause| AdoptError::NoProcess { pid, cause })?;
        let netns = Arc::new(OwnedFd::from(netns));
        let step = |what, cause: String| AdoptError::Step { pid, what, cause };
        let links = inside(netns.clone(), Links::open)
            .await
            .map_err(|error: io::Error| step("entering the namespace", error.to_string()))?;
        let not_ours = |reason: &str| AdoptError::NotOurs { pid, reason: reason.to_owned() };
        let index =
            links.index(UPLINK_NAME).await.map_err(|_| not_ours("it has no interface of that name"))?;
        let addresses =
            links.addresses().await.map_err(|e| step("listing the namespace's addresses", e.to_string()))?;
        let address = addresses
            .into_iter()
            .find_map(|(interface, address)| (interface == index).then_some(address))
            .ok_or_else(|| not_ours("its uplink has no address"))?;
        let slot = host.slots.take_at(address).ok_or_else(|| {
            not_ours(&format!("the address {address} is not in the pool, or already adopted"))
        })?;
        let uplink = host.slots.uplink_name(slot.slot);
        let ours = host.links.index(&uplink).await;
        ours.map_err(|_| not_ours(&format!("the host has no interface {uplink}")))?;
        Ok(Self {
            netns,
            tap: None,
            sockets: host.sockets.clone(),
            resolver: host.resolver,
            reach: host.options.reach.clone(),
            uplink,
            _slot: slot,
        })
    }
}

/// Moves the calling thread into a new namespace with a tap.
fn make_namespace() -> io::Result<Made> {
    torpor_sys::netns::unshare_network()?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    for which in ["all", "default"] {
        match std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1") {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(Made { tap: torpor_sys::tap::create_tap(TAP_NAME)?, netns: current()?, links: Links::open()? })
}

/// Gives a new namespace its addresses and connects it to the host.
async fn wire(host: &Host, slot: &HeldSlot, netns: &OwnedFd, links: &Links) -> Result<(), CreateError> {
    let name = host.slots.uplink_name(slot.slot);
    let address = host.slots.host_address(slot.slot);
    let tap = async {
        let index = links.index(TAP_NAME).await?;
        links.up_with_mac(index, TAP_MAC).await?;
        links.add_address(index, GATEWAY_ADDRESS, GUEST_PREFIX_LEN).await?;
        links.add_neighbour(index, GUEST_ADDRESS, GUEST_MAC).await
    };
    let uplink = async {
        host.links.add_veth(&name, UPLINK_NAME, netns).await?;
        let far = async {
            let index = host.links.index(&name).await?;
            host.links.add_address(index, address, 31).await
        };
        let near = async {
            let index = links.index(UPLINK_NAME).await?;
            links.add_address(index, host.slots.namespace_address(slot.slot), 31).await?;
            links.up(index).await?;
            links.add_default_route(address).await
        };
        tokio::try_join!(far, near).map(drop)
    };
    let loopback = async { links.up(links.index("lo").await?).await };
    let step = |what| move |error: rtnetlink::Error| CreateError::step(what, error);
    tokio::try_join!(
        async { tap.await.map_err(step("setting up the tap")) },
        async { uplink.await.map_err(step("setting up the uplink")) },
        async { loopback.await.map_err(step("setting up the loopback interface")) },
    )?;
    Ok(())
}

async fn join(task: tokio::task::JoinHandle<io::Result<()>>) -> String {
    match task.await {
        Ok(Ok(())) => "the thread ended early".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

// === impl CreateError ===

impl CreateError {
    fn step(what: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Step { what, cause: cause.to_string() }
    }
}

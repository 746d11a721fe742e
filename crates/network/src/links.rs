//! Interfaces, addresses and routes, over the kernel's route netlink.
//!
//! A netlink socket speaks for the namespace it was opened in, so one session serves one namespace, from any thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkExtentMask};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::{AddressFamily, link::LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::AbortHandle;

/// A netlink session with one namespace. It keeps the namespace alive until dropped.
#[derive(Debug)]
pub(crate) struct Links {
    handle: Handle,
    session: AbortHandle,
    /// The kernel answers one listing at a time on one socket; a second one gets `EBUSY`.
    listing: tokio::sync::Mutex<()>,
}

// === impl Links ===

impl Links {
    /// Opens a session with the calling thread's namespace. The thread has to be in a runtime's context.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let session = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, session, listing: tokio::sync::Mutex::default() })
    }

    /// Makes a veth pair: `name` here, up, and `peer` in the namespace `peer_netns`.
    pub(crate) async fn add_veth(
        &self,
        name: &str,
        peer: &str,
        peer_netns: &OwnedFd,
    ) -> Result<(), rtnetlink::Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer.to_owned())
            .setns_by_fd(peer_netns.as_raw_fd())
            .build();
        let veth = LinkVeth::new(name, "").set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).up().build();
        self.handle.link().add(veth).execute().await
    }

    /// Number of the interface `name`.
    pub(crate) async fn index(&self, name: &str) -> Result<u32, rtnetlink::Error> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await? {
            Some(link) => Ok(link.header.index),
            None => Err(rtnetlink::Error::RequestFailed),
        }
    }

    pub(crate) async fn up(&self, index: u32) -> Result<(), rtnetlink::Error> {
        self.handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await
    }

    /// Sets the MAC address of an interface and brings it up.
    pub(crate) async fn up_with_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), rtnetlink::Error> {
        let link = LinkUnspec::new_with_index(index).address(mac.to_vec()).up().build();
        self.handle.link().change(link).execute().await
    }

    pub(crate) async fn add_address(
        &self,
        index: u32,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), rtnetlink::Error> {
        self.handle.address().add(index, IpAddr::V4(address), prefix_len).execute().await
    }

    pub(crate) async fn add_default_route(&self, gateway: Ipv4Addr) -> Result<(), rtnetlink::Error> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        self.handle.route().add(route).execute().await
    }

    /// Tells the kernel for ever which MAC address `address` has.
    pub(crate) async fn add_neighbour(
        &self,
        index: u32,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<(), rtnetlink::Error> {
        self.handle
            .neighbours()
            .add(index, IpAddr::V4(address))
            .link_layer_address(&mac)
            .state(NeighbourState::Permanent)
            .execute()
            .await
    }

    /// Every IPv4 address on every interface of the namespace, with the interface's number.
    pub(crate) async fn addresses(&self) -> Result<Vec<(u32, Ipv4Addr)>, rtnetlink::Error> {
        let _turn = self.listing.lock().await;
        let mut request = self.handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let mut messages = Box::pin(request.execute());
        let mut addresses = Vec::new();
        while let Some(message) = messages.try_next().await? {
            for attribute in message.attributes {
                // `Address` is the far end on point-to-point interfaces; the near end is `Local`.
                if let AddressAttribute::Local(IpAddr::V4(address)) = attribute {
                    addresses.push((message.header.index, address));
                }
            }
        }
        Ok(addresses)
    }

    /// Names and numbers of the interfaces whose names start with `prefix`.
    pub(crate) async fn names(&self, prefix: &str) -> Result<Vec<(u32, String)>, rtnetlink::Error> {
        let _turn = self.listing.lock().await;
        let request =
            self.handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let mut links = Box::pin(request.execute());
        let mut names = Vec::new();
        while let Some(link) = links.try_next().await? {
            if let Some(name) = name_of(&link).filter(|name| name.starts_with(prefix)) {
                names.push((link.header.index, name.to_owned()));
            }
        }
        Ok(names)
    }

    /// Removes an interface; that it is gone already is fine.
    pub(crate) async fn remove(&self, index: u32) -> Result<(), rtnetlink::Error> {
        match self.handle.link().del(index).execute().await {
            Err(rtnetlink::Error::NetlinkError(error))
                if error.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.session.abort();
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

//! Connections that leave: to an address or to a name, directly or through the user's SOCKS5 proxy.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_socks::tcp::Socks5Stream;
use torpor_network::{NamespaceSockets, Reach};
use torpor_types::{DomainName, EgressProxy, ProxyAddress};

use crate::error::DialError;
use crate::leaving::{Leaving, encrypt};
use crate::resolve::Resolver;

/// How long making one connection may take, in all.
pub(crate) const DIAL_LIMIT: Duration = Duration::from_secs(15);
/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 4;

/// Makes connections from inside one namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) sockets: NamespaceSockets,
    pub(crate) resolver: Resolver,
    pub(crate) reach: Reach,
    /// Whom a proxy in TLS is believed to be by.
    pub(crate) trust: ClientConfig,
}

/// Where to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    /// This address.
    Address(SocketAddrV4),
    /// An address of this name; `preferred` if it is one.
    Name { name: &'a DomainName, port: u16, preferred: Ipv4Addr },
}

// === impl Dialer ===

impl Dialer {
    /// Connects to `target`. Of a name's addresses, only those that `may_reach` are taken.
    pub(crate) async fn dial(
        &self,
        proxy: Option<&EgressProxy>,
        target: Target<'_>,
        may_reach: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<Leaving, DialError> {
        let dialing = async {
            match (proxy, target) {
                (None, Target::Address(address)) => self.connect(address).await.map(Leaving::Plain),
                (None, Target::Name { name, port, preferred }) => {
                    let addresses = self.resolve(name, preferred, may_reach).await?;
                    self.connect_to_any(&addresses, port).await.map(Leaving::Plain)
                }
                (Some(proxy), Target::Address(address)) => {
                    // What is out of reach stays so: the proxy may be inside of the operator's network.
                    self.check(*address.ip())?;
                    self.through(proxy, SocketAddr::V4(address)).await
                }
                (Some(proxy), Target::Name { name, port, .. }) => {
                    self.through(proxy, (name.as_str(), port)).await
                }
            }
        };
        tokio::time::timeout(DIAL_LIMIT, dialing).await.map_err(|_| DialError::TimedOut)?
    }

    /// The addresses of `name` that may be reached, `preferred` first.
    pub(crate) async fn resolve(
        &self,
        name: &DomainName,
        preferred: Ipv4Addr,
        may_reach: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<Vec<Ipv4Addr>, DialError> {
        let resolved = self.resolver.addresses(name).await;
        let mut addresses = resolved.map_err(|cause| DialError::Resolve { name: name.clone(), cause })?;
        addresses.retain(|address| self.reach.contains(*address) && may_reach(*address));
        addresses.sort_by_key(|address| *address != preferred);
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() { Err(DialError::NoAddress(name.clone())) } else { Ok(addresses) }
    }

    async fn connect_to_any(&self, addresses: &[Ipv4Addr], port: u16) -> Result<TcpStream, DialError> {
        let mut last = DialError::TimedOut;
        for address in addresses {
            match self.connect(SocketAddrV4::new(*address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect(&self, address: SocketAddrV4) -> Result<TcpStream, DialError> {
        self.check(*address.ip())?;
        let socket = self.sockets.tcp().await?;
        socket.set_nodelay(true)?;
        Ok(socket.connect(SocketAddr::V4(address)).await?)
    }

    async fn through<'t>(
        &self,
        proxy: &EgressProxy,
        target: impl tokio_socks::IntoTargetAddr<'t>,
    ) -> Result<Leaving, DialError> {
        let stream = match &proxy.address {
            ProxyAddress::Address(address, port) => self.connect(SocketAddrV4::new(*address, *port)).await?,
            ProxyAddress::Name(name, port) => {
                let addresses = self.resolve(name, Ipv4Addr::UNSPECIFIED, |_| true).await?;
                self.connect_to_any(&addresses, *port).await?
            }
        };
        let stream = match &proxy.tls {
            Some(tls) => encrypt(stream, proxy, tls, &self.trust).await?,
            None => Leaving::Plain(stream),
        };
        let tunnel = match (&proxy.username, &proxy.password) {
            (Some(username), password) => {
                let password = password.as_deref().unwrap_or_default();
                Socks5Stream::connect_with_password_and_socket(stream, target, username, password).await?
            }
            (None, _) => Socks5Stream::connect_with_socket(stream, target).await?,
        };
        Ok(tunnel.into_inner())
    }

    fn check(&self, address: Ipv4Addr) -> Result<(), DialError> {
        if self.reach.contains(address) { Ok(()) } else { Err(DialError::OutOfReach(address)) }
    }
}

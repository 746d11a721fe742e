//! Sockets of a sandbox's namespace: the way into its guest, and the egress proxy's way out.
//!
//! A socket belongs for ever to the namespace of the thread that made it. One thread per [`crate::Network`] does nothing but
//! enter a namespace, make a socket, and come back; everything after that (connect, read, write) is ordinary asynchronous I/O.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use crate::{GUEST_ADDRESS, inside};

/// Connects to ports in one guest. Cheap to clone.
///
/// It keeps the namespace alive: drop it together with the machine.
#[derive(Debug, Clone)]
pub struct Connector {
    pub(crate) sockets: NamespaceSockets,
}

/// Makes sockets that belong to one namespace. Cheap to clone.
///
/// What they send leaves by the namespace's uplink, behind which the host's filter holds. It keeps the namespace alive, and
/// so does every socket: drop them together with the machine.
#[derive(Debug, Clone)]
pub struct NamespaceSockets {
    pub(crate) netns: Arc<OwnedFd>,
    pub(crate) sockets: Sockets,
}

/// The thread that makes sockets. It ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Sockets(Sender<SocketRequest>);

#[derive(Debug)]
struct SocketRequest {
    netns: Arc<OwnedFd>,
    kind: SocketType,
    reply: oneshot::Sender<io::Result<OwnedFd>>,
}

// === impl Connector ===

impl Connector {
    /// How long [`Connector::connect`] tries.
    pub const DEADLINE: Duration = Duration::from_secs(5);

    /// Connects to `port` of the guest within [`Connector::DEADLINE`]; the stream has `TCP_NODELAY` set.
    ///
    /// `ConnectionRefused` means that nothing listens there; `TimedOut` that the guest does not answer.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        self.connect_within(port, Self::DEADLINE).await
    }

    /// As [`Connector::connect`], with a deadline of the caller's.
    pub async fn connect_within(&self, port: u16, deadline: Duration) -> io::Result<TcpStream> {
        let connecting = async {
            let socket = self.sockets.tcp().await?;
            socket.set_nodelay(true)?;
            socket.connect(SocketAddr::from((GUEST_ADDRESS, port))).await
        };
        match tokio::time::timeout(deadline, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("port {port} of the sandbox did not answer within {} ms", deadline.as_millis()),
            )),
        }
    }
}

// === impl NamespaceSockets ===

impl NamespaceSockets {
    /// A TCP socket.
    pub async fn tcp(&self) -> io::Result<TcpSocket> {
        let socket = self.sockets.make(self.netns.clone(), SocketType::STREAM).await?;
        Ok(TcpSocket::from_std_stream(StdTcpStream::from(socket)))
    }

    /// A UDP socket that is bound to `address`.
    pub async fn udp(&self, address: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.sockets.make(self.netns.clone(), SocketType::DGRAM).await?;
        rustix::net::bind(&socket, &address)?;
        UdpSocket::from_std(StdUdpSocket::from(socket))
    }
}

// === impl Sockets ===

impl Sockets {
    /// Starts the thread; between requests it lives in `home`.
    pub(crate) fn start(home: Arc<OwnedFd>) -> io::Result<Self> {
        let (sender, requests) = channel();
        std::thread::Builder::new()
            .name("netns-sockets".to_owned())
            .spawn(move || make_sockets(&home, &requests))?;
        Ok(Self(sender))
    }

    async fn make(&self, netns: Arc<OwnedFd>, kind: SocketType) -> io::Result<OwnedFd> {
        let (reply, socket) = oneshot::channel();
        let gone = || io::Error::other("the thread that makes sockets has ended");
        self.0.send(SocketRequest { netns, kind, reply }).map_err(|_| gone())?;
        socket.await.map_err(|_| gone())?
    }
}

fn make_sockets(home: &OwnedFd, requests: &Receiver<SocketRequest>) {
    while let Ok(SocketRequest { netns, kind, reply }) = requests.recv() {
        let socket = inside::enter(&netns).and_then(|()| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(socket_with(AddressFamily::INET, kind, flags, None)?)
        });
        // Staying would keep the namespace alive after its machine.
        if let Err(error) = inside::enter(home) {
            tracing::error!(%error, "the thread that makes sockets cannot leave a sandbox's namespace");
        }
        drop(netns);
        // Whoever asked may have lost interest.
        let _ = reply.send(socket);
    }
}

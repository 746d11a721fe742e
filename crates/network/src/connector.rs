//! The way into a guest: TCP connections made inside its namespace.
//!
//! A socket belongs for ever to the namespace of the thread that made it. One thread per [`crate::Network`] does nothing but
//! enter a namespace, make a socket, and come back; everything after that (connect, read, write) is ordinary asynchronous I/O.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use crate::{GUEST_ADDRESS, inside};

/// Connects to ports in one guest. Cheap to clone.
///
/// It keeps the namespace alive: drop it together with the machine.
#[derive(Debug, Clone)]
pub struct Connector {
    pub(crate) netns: Arc<OwnedFd>,
    pub(crate) sockets: Sockets,
}

/// The thread that makes sockets. It ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Sockets(Sender<SocketRequest>);

#[derive(Debug)]
struct SocketRequest {
    netns: Arc<OwnedFd>,
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
            let socket = self.sockets.make(self.netns.clone()).await?;
            let socket = TcpSocket::from_std_stream(StdTcpStream::from(socket));
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

    async fn make(&self, netns: Arc<OwnedFd>) -> io::Result<OwnedFd> {
        let (reply, socket) = oneshot::channel();
        let gone = || io::Error::other("the thread that makes sockets has ended");
        self.0.send(SocketRequest { netns, reply }).map_err(|_| gone())?;
        socket.await.map_err(|_| gone())?
    }
}

fn make_sockets(home: &OwnedFd, requests: &Receiver<SocketRequest>) {
    while let Ok(SocketRequest { netns, reply }) = requests.recv() {
        let socket = inside::enter(&netns).and_then(|()| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
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

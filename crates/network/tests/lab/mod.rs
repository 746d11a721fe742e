//! A small internet made of network namespaces, with Torpor on its "host".
//!
//! ```text
//!  guest eth0 (tap) ═ pump ═ tap0 [sandbox namespace] uplink ── [host: the test's thread] wan ── [outside]
//! ```
//!
//! In QEMU's place a pump carries frames between the sandbox's tap and a tap in a namespace that plays the guest. All addresses
//! are the lab's own: nothing leaves the machine, and the machine's own network is not touched.

// A step of the lab that fails fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use torpor_network::{Namespace, Network, NetworkOptions};

/// The host's address on the way out.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// A public server.
pub(crate) const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
/// Another public server.
pub(crate) const OTHER_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 6);
/// A private server that is the resolver, too.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 53);
/// Addresses that answer the host, and must not answer a sandbox.
pub(crate) const FORBIDDEN: [Ipv4Addr; 6] = [
    RESOLVER,
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(172, 20, 0, 9),
    Ipv4Addr::new(192, 168, 7, 7),
    Ipv4Addr::new(100, 64, 3, 3),
    Ipv4Addr::new(198, 18, 0, 1),
];

/// A network namespace.
#[derive(Clone)]
pub(crate) struct Net(Arc<OwnedFd>);

/// The lab: the thread that made it is the host.
pub(crate) struct Lab {
    pub(crate) host: Net,
    pub(crate) outside: Net,
}

/// A guest behind a sandbox's tap.
pub(crate) struct Guest {
    pub(crate) net: Net,
    pumps: [JoinHandle<()>; 2],
}

/// Runs `test` as the host of a new lab.
pub(crate) fn in_lab<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        torpor_sys::netns::unshare_network().expect("needs root");
        let host = Net::current();
        let outside = Net::new();
        ip("link set lo up");
        ip("link add wan type veth peer name wan-far");
        ip(&format!("addr add {HOST}/24 dev wan"));
        ip("link set wan up");
        // The far end moves by process id of a holder; a namespace without a name has none, so a thread stays there meanwhile.
        outside.receive_link("wan-far");
        outside.run(|| {
            ip("link set lo up");
            ip(&format!("addr add {PUBLIC}/24 dev wan-far"));
            ip(&format!("addr add {OTHER_PUBLIC}/24 dev wan-far"));
            ip("link set wan-far up");
            for address in FORBIDDEN {
                ip(&format!("addr add {address}/32 dev lo"));
            }
        });
        for address in FORBIDDEN {
            ip(&format!("route add {address}/32 via {PUBLIC}"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(Lab { host, outside }));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("the program ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn options(instance: &str) -> NetworkOptions {
    let mut options = NetworkOptions::new(instance.parse().unwrap());
    options.resolver = Some(RESOLVER.into());
    options
}

/// Waits until the kernel has torn down the namespaces of all sandboxes, which it does in the background.
pub(crate) async fn until_unused(network: &Network) {
    let gone = async {
        while !network.remove_if_unused().await.unwrap() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.expect("uplinks are left");
}

impl Net {
    pub(crate) fn current() -> Self {
        Self(Arc::new(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()))
    }

    pub(crate) fn new() -> Self {
        std::thread::spawn(|| {
            torpor_sys::netns::unshare_network().unwrap();
            Self::current()
        })
        .join()
        .unwrap()
    }

    pub(crate) fn of(namespace: &Namespace) -> Self {
        Self(Arc::new(namespace.netns().try_clone_to_owned().unwrap()))
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Moves the calling thread's interface `name` here.
    fn receive_link(&self, name: &str) {
        let mut holder =
            self.run(|| Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap());
        ip(&format!("link set {name} netns {}", holder.id()));
        drop(holder.stdin.take());
        holder.wait().unwrap();
    }

    pub(crate) fn listen(&self, address: Ipv4Addr, port: u16) -> TcpListener {
        let listener = self.run(|| StdTcpListener::bind((address, port)).unwrap());
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    pub(crate) fn udp(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        let socket = self.run(|| StdUdpSocket::bind((address, port)).unwrap());
        socket.set_nonblocking(true).unwrap();
        UdpSocket::from_std(socket).unwrap()
    }

    pub(crate) async fn connect(&self, address: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        let socket = self.run(|| {
            let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
            rustix::net::socket_with(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                flags,
                None,
            )
            .unwrap()
        });
        TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::from((address, port))).await
    }
}

impl Guest {
    /// Plugs a guest into a sandbox's tap.
    // The replacement is unsafe, for types that close their descriptor behind AsyncFd's back; an OwnedFd does not.
    #[allow(deprecated)]
    pub(crate) fn plug_in(tap: OwnedFd) -> Self {
        let net = Net::new();
        let eth0 = net.run(|| {
            let eth0 = torpor_sys::tap::create_tap("eth0").unwrap();
            let mac: Vec<String> =
                torpor_network::GUEST_MAC.iter().map(|byte| format!("{byte:02x}")).collect();
            ip(&format!("link set eth0 address {}", mac.join(":")));
            ip(&format!(
                "addr add {}/{} dev eth0",
                torpor_network::GUEST_ADDRESS,
                torpor_network::GUEST_PREFIX_LEN
            ));
            ip("link set lo up");
            ip("link set eth0 up");
            ip(&format!("route add default via {}", torpor_network::GATEWAY_ADDRESS));
            eth0
        });
        let tap = Arc::new(AsyncFd::new(tap).unwrap());
        let eth0 = Arc::new(AsyncFd::new(eth0).unwrap());
        let pumps = [tokio::spawn(pump(tap.clone(), eth0.clone())), tokio::spawn(pump(eth0, tap))];
        Self { net, pumps }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for pump in &self.pumps {
            pump.abort();
        }
    }
}

/// Carries frames one way, in order.
async fn pump(from: Arc<AsyncFd<OwnedFd>>, to: Arc<AsyncFd<OwnedFd>>) {
    let mut frame = vec![0; 1 << 16];
    loop {
        let mut ready = from.readable().await.unwrap();
        let Ok(read) = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut frame[..])?)) else {
            continue;
        };
        // An interface that is down refuses frames, as a wire would lose them.
        let _ = rustix::io::write(to.get_ref(), &frame[..read.unwrap()]);
    }
}

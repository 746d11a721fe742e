//! Connections of one sandbox: accepting, deciding, carrying.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use torpor_network::GATEWAY_ADDRESS;
use torpor_types::Egress;

use crate::decide::{Decision, Verdict, decide};
use crate::dial::{Dialer, Target};
use crate::error::Refusal;
use crate::headers::{Protocol, pass_on};
use crate::intercept::Interceptor;
use crate::leaving::Leaving;
use crate::opening::Opening;

/// How long a client may take to say what it wants, where that decides whether it gets it.
pub(crate) const OPENING_LIMIT: Duration = Duration::from_secs(30);
/// Connections of one sandbox at a time; more are reset.
const MAX_CONNECTIONS: usize = 4096;
/// Ports on which the client always speaks first.
const CLIENT_FIRST_PORTS: [u16; 2] = [80, 443];
/// How long accepting pauses when the server is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What serves the connections of one sandbox. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connections {
    pub(crate) dialer: Dialer,
    pub(crate) interceptor: Arc<Interceptor>,
    pub(crate) policy: watch::Receiver<Arc<Egress>>,
}

/// A connection of the guest's, and what was read of it.
struct Client {
    stream: TcpStream,
    destination: SocketAddrV4,
    read: Vec<u8>,
}

/// Where a connection goes on, and why there.
struct Way {
    server: Leaving,
    decision: Decision,
    opening: Opening,
}

// === impl Connections ===

impl Connections {
    /// Serves until dropped.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(self.clone().serve_one(stream));
                }
                Ok((stream, _)) => reset(&stream),
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    async fn serve_one(mut self, stream: TcpStream) {
        let asked = rustix::net::sockopt::ip_original_dst(&stream);
        // A connection that was not redirected is none of ours; the firewall lets none through.
        let Some(destination) = asked.ok().filter(|address| *address.ip() != GATEWAY_ADDRESS) else {
            return reset(&stream);
        };
        // Without it small packets wait for each other, in either direction.
        let _ = stream.set_nodelay(true);
        let mut client = Client { stream, destination, read: Vec::new() };
        let carried = match self.way_for(&mut client).await {
            Ok(way) => self.carry(client, way).await,
            Err(refusal) => {
                reset(&client.stream);
                Err(refusal)
            }
        };
        match carried {
            Ok(()) => {}
            // Either side hung up, which is theirs to do.
            Err(Refusal::Io(error)) => {
                tracing::debug!(%destination, %error, "a sandbox's connection ended early")
            }
            Err(refusal) => tracing::info!(%destination, %refusal, "a sandbox's connection was not served"),
        }
    }

    /// Decides about a connection, and makes the one it goes on through.
    async fn way_for(&mut self, client: &mut Client) -> Result<Way, Refusal> {
        let egress = self.policy.borrow_and_update().clone();
        let address_allowed = egress.allows_address(*client.destination.ip());
        let client_first = CLIENT_FIRST_PORTS.contains(&client.destination.port());
        let mut early = None;
        if address_allowed && (egress.rules.is_empty() || !client_first) {
            let opening = Opening::Other;
            let decision = decide(&egress, client.destination, &opening);
            let mut server = self.dial(&egress, &decision, client).await?;
            if egress.rules.is_empty() {
                return Ok(Way { server, decision, opening });
            }
            // Looking, unlike waiting for readiness, is never over before there is something to see.
            let mut first = [0; 1];
            tokio::select! {
                looked = client.stream.peek(&mut first) => {
                    looked?;
                }
                looked = server.heard() => {
                    // The server speaks first: not HTTP.
                    looked?;
                    return Ok(Way { server, decision, opening });
                }
            }
            early = Some(server);
        }
        let opening = client.opening().await?;
        let decision = decide(&egress, client.destination, &opening);
        let server = match early {
            Some(server) if decision.verdict == Verdict::AsAsked => server,
            _ => self.dial(&egress, &decision, client).await?,
        };
        Ok(Way { server, decision, opening })
    }

    async fn dial(&self, egress: &Egress, decision: &Decision, client: &Client) -> Result<Leaving, Refusal> {
        let (port, preferred) = (client.destination.port(), *client.destination.ip());
        let proxy = decision.proxy.as_ref();
        let stream = match &decision.verdict {
            Verdict::Refuse => return Err(Refusal::Policy),
            Verdict::AsAsked => {
                self.dialer.dial(proxy, Target::Address(client.destination), |_| true).await?
            }
            Verdict::ToName(name) | Verdict::WithHeaders { name, name_allowed: true, .. } => {
                self.dialer.dial(proxy, Target::Name { name, port, preferred }, |_| true).await?
            }
            Verdict::WithHeaders { name, name_allowed: false, .. } => {
                // The proxy of the user's would resolve the name by itself, to who knows what.
                let allowed = |address| egress.allows_address(address);
                let addresses = self.dialer.resolve(name, preferred, allowed).await?;
                let address = addresses.first().copied().unwrap_or(preferred);
                self.dialer.dial(proxy, Target::Address(SocketAddrV4::new(address, port)), |_| true).await?
            }
        };
        Ok(stream)
    }

    /// Carries what the two sides say until both are done, or the policy decides otherwise.
    async fn carry(self, client: Client, way: Way) -> Result<(), Refusal> {
        let Way { mut server, decision, opening } = way;
        let destination = client.destination;
        let otherwise = self.decides_otherwise(&decision, destination, &opening);
        match &decision.verdict {
            Verdict::Refuse => Err(Refusal::Policy),
            Verdict::AsAsked | Verdict::ToName(_) => {
                let Client { mut stream, read, .. } = client;
                let carrying = async {
                    server.write_all(&read).await?;
                    server.flush().await?;
                    copy_bidirectional(&mut stream, &mut server).await
                };
                tokio::select! {
                    carried = carrying => return Ok(carried.map(drop)?),
                    () = otherwise => {}
                }
                reset(&stream);
                reset(server.tcp());
                Err(Refusal::PolicyChanged)
            }
            Verdict::WithHeaders { name, headers, .. } => {
                let (name, headers) = (name.clone(), headers.clone());
                let stream = client.into_stream();
                let passing = async {
                    if let Opening::Tls { .. } = opening {
                        let both = self.interceptor.intercept(stream, server, &name).await?;
                        pass_on(both.client, both.server, both.protocol, name, headers).await
                    } else {
                        pass_on(stream, server, Protocol::Http1, name, headers).await
                    }
                };
                tokio::select! {
                    passed = passing => passed,
                    () = otherwise => Err(Refusal::PolicyChanged),
                }
            }
        }
    }

    /// Waits until the policy would decide otherwise about a connection than it did.
    fn decides_otherwise(
        &self,
        decision: &Decision,
        destination: SocketAddrV4,
        opening: &Opening,
    ) -> impl Future<Output = ()> + use<> {
        let (mut policy, decision, opening) = (self.policy.clone(), decision.clone(), opening.clone());
        async move {
            let otherwise = |egress: &Arc<Egress>| decide(egress, destination, &opening) != decision;
            // An end of the policy is the end of the sandbox, which ends this too.
            let _ = policy.wait_for(otherwise).await;
        }
    }
}

// === impl Client ===

impl Client {
    /// Reads until it is clear how the connection begins.
    async fn opening(&mut self) -> Result<Opening, Refusal> {
        let reading = async {
            loop {
                if let Some(opening) = Opening::of(&self.read) {
                    return Ok(opening);
                }
                if self.stream.read_buf(&mut self.read).await? == 0 {
                    return Ok(Opening::Other);
                }
            }
        };
        tokio::time::timeout(OPENING_LIMIT, reading).await.map_err(|_| Refusal::Silent)?
    }

    /// The connection from its first byte on.
    fn into_stream(self) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
        let (unread, write) = self.stream.into_split();
        tokio::io::join(std::io::Cursor::new(self.read).chain(unread), write)
    }
}

/// Ends a connection so that its other side notices at once: with a reset when it is dropped.
fn reset(stream: &TcpStream) {
    // A connection that is gone already needs none.
    let _ = stream.set_zero_linger();
}

/// A connection could not be accepted: the server is out of something, most likely descriptors.
pub(crate) async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "a sandbox's connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

//! The egress proxies of a node's sandboxes.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use torpor_network::{
    EgressPolicy, GATEWAY_ADDRESS, NAMES_PORT, Namespace, NamespaceSockets, PROXY_PORT, Reach,
};
use torpor_types::{Egress, MachineId};

use crate::authority::Authority;
use crate::dial::Dialer;
use crate::error::{ApplyError, StartError};
use crate::intercept::Interceptor;
use crate::leaving::trust_all;
use crate::names::NameServer;
use crate::resolve::Resolver;
use crate::serve::Connections;

/// Connections that wait to be accepted, at most.
const BACKLOG: u32 = 1024;

/// What the egress proxies of a node need.
#[derive(Debug)]
pub struct OutboundOptions {
    /// The node's DNS resolver.
    pub resolver: Option<Ipv4Addr>,
    /// Which addresses sandboxes may have a way to at all.
    pub reach: Reach,
    /// Signs the certificates sandboxes are shown.
    pub authority: Authority,
    /// A PEM file with certificates of authorities that are trusted beside those the host trusts.
    pub extra_roots: Option<PathBuf>,
}

/// Sets what sandboxes reach, and serves those that need more than a firewall. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbound(Arc<Node>);

#[derive(Debug)]
struct Node {
    resolver: Option<Ipv4Addr>,
    reach: Reach,
    interceptor: Arc<Interceptor>,
    served: Mutex<HashMap<MachineId, Served>>,
}

/// The proxy of one sandbox. It ends when dropped, with every connection.
#[derive(Debug)]
struct Served {
    policy: watch::Sender<Arc<Egress>>,
    _tasks: JoinSet<()>,
}

// === impl Outbound ===

impl Outbound {
    /// Makes ready. Nothing is served yet.
    pub fn new(options: OutboundOptions) -> Result<Self, StartError> {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "some certificates this host trusts cannot be read");
        }
        roots.add_parsable_certificates(native.certs);
        if let Some(path) = options.extra_roots {
            let certificates = CertificateDer::pem_file_iter(&path).map_err(|error| error.to_string());
            let trusted = certificates.and_then(|certificates| trust_all(&mut roots, certificates));
            trusted.map_err(|why| StartError::Roots { path: path.display().to_string(), why })?;
        }
        if roots.is_empty() {
            tracing::warn!(
                "this host trusts no certificate authority: header rules will not work for HTTPS. Install the package \
                 ca-certificates"
            );
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(Node {
            resolver: options.resolver,
            reach: options.reach,
            interceptor: Arc::new(Interceptor::new(Arc::new(options.authority), trust)),
            served: Mutex::default(),
        })))
    }

    /// Puts `egress` in force in the namespace of `machine`: for new connections, and for those that are open. Says whether
    /// the machine is served only since then: [`Outbound::forget`] it when it ends.
    ///
    /// # Errors
    /// What was in force before still is.
    pub async fn apply(
        &self,
        machine: &MachineId,
        namespace: &Namespace,
        egress: &Egress,
    ) -> Result<bool, ApplyError> {
        let policy = EgressPolicy::from(egress);
        if !policy.needs_proxy() {
            namespace.set_egress(&policy).await?;
            self.forget(machine);
            return Ok(false);
        }
        // The listeners first: once the rules redirect to them, they are there.
        let egress = Arc::new(egress.clone());
        let before = match self.replace_policy(machine, &egress) {
            Some(before) => Some(before),
            None => {
                let served = self.start(namespace.sockets(), egress).await.map_err(ApplyError::Listen)?;
                self.served().insert(machine.clone(), served);
                None
            }
        };
        match (namespace.set_egress(&policy).await, before) {
            (Ok(()), before) => Ok(before.is_none()),
            (Err(error), Some(before)) => {
                self.replace_policy(machine, &before);
                Err(error.into())
            }
            (Err(error), None) => {
                self.forget(machine);
                Err(error.into())
            }
        }
    }

    /// The machine has ended: lets go of its namespace. It is no error if it has no proxy.
    pub fn forget(&self, machine: &MachineId) {
        let served = self.served().remove(machine);
        drop(served);
    }

    /// The certificate that a sandbox with this egress has to trust, in PEM; `None` if it need not.
    pub fn ca_bundle(&self, egress: &Egress) -> Option<&str> {
        let needed = egress.rules.values().flatten().any(|rule| !rule.headers.is_empty());
        needed.then(|| self.0.interceptor.authority().certificate_pem())
    }

    /// Replaces the policy of a machine that is served; the one before, if it is.
    fn replace_policy(&self, machine: &MachineId, egress: &Arc<Egress>) -> Option<Arc<Egress>> {
        self.served().get(machine).map(|served| served.policy.send_replace(egress.clone()))
    }

    async fn start(&self, sockets: NamespaceSockets, egress: Arc<Egress>) -> std::io::Result<Served> {
        let proxy = listen(&sockets, PROXY_PORT).await?;
        let names_tcp = listen(&sockets, NAMES_PORT).await?;
        let names_udp = sockets.udp(SocketAddrV4::new(GATEWAY_ADDRESS, NAMES_PORT)).await?;
        let (policy, watched) = watch::channel(egress);
        let resolver = Resolver { server: self.0.resolver, sockets: sockets.clone() };
        let dialer = Dialer {
            sockets,
            resolver: resolver.clone(),
            reach: self.0.reach.clone(),
            trust: self.0.interceptor.trust().clone(),
        };
        let interceptor = self.0.interceptor.clone();
        let names = NameServer::new(resolver, watched.clone());
        let connections = Connections { dialer, interceptor, policy: watched };
        let mut tasks = JoinSet::new();
        tasks.spawn(connections.serve(proxy));
        tasks.spawn(names.clone().serve_tcp(names_tcp));
        tasks.spawn(names.serve_udp(names_udp));
        Ok(Served { policy, _tasks: tasks })
    }

    fn served(&self) -> std::sync::MutexGuard<'_, HashMap<MachineId, Served>> {
        // Every change is a single step, so a panic elsewhere cannot have left it half done.
        self.0.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn listen(sockets: &NamespaceSockets, port: u16) -> std::io::Result<TcpListener> {
    let socket = sockets.tcp().await?;
    // Connections of an earlier server may still be ending.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((GATEWAY_ADDRESS, port)))?;
    socket.listen(BACKLOG)
}

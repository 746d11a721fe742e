//! What can go wrong, one enum per operation.

use std::io;
use std::net::Ipv4Addr;

use torpor_types::DomainName;

/// A certificate authority cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[error("the egress proxy's certificate authority cannot be {what}: {cause}")]
pub struct AuthorityError {
    pub(crate) what: &'static str,
    pub(crate) cause: String,
}

/// The egress proxy cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificates it is to trust.
    #[error("the file {path} with certificates to trust cannot be used: {why}. It has to be PEM")]
    Roots {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The TLS library.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A sandbox's egress could not be set. What was in force before still is.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The listeners.
    #[error("the egress proxy cannot listen in the sandbox's network: {0}")]
    Listen(#[source] io::Error),
    /// The rules.
    #[error(transparent)]
    Rules(#[from] torpor_network::EgressError),
}

/// Certificates of authorities cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("certificates of authorities have to be PEM: {0}")]
pub struct CertificatesError(pub(crate) String);

/// A name cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("the node has no DNS resolver")]
    NoResolver,
    #[error("the DNS resolver did not answer: {0}")]
    Exchange(#[from] io::Error),
    #[error("the DNS messages could not be read: {0}")]
    Wire(String),
}

/// A connection cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{0} is out of reach for sandboxes")]
    OutOfReach(Ipv4Addr),
    #[error("{name} cannot be resolved: {cause}")]
    Resolve { name: DomainName, cause: ResolveError },
    #[error("{0} has no address that the sandbox may reach")]
    NoAddress(DomainName),
    #[error("no connection: {0}")]
    Connect(#[from] io::Error),
    #[error("no connection within {} s", crate::dial::DIAL_LIMIT.as_secs())]
    TimedOut,
    #[error("TLS with the SOCKS5 proxy failed: {0}")]
    ProxyTls(#[source] io::Error),
    #[error("the SOCKS5 proxy refused: {0}")]
    Proxy(#[from] tokio_socks::Error),
}

/// A connection of the guest's was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the policy does not allow it")]
    Policy,
    #[error("the policy changed")]
    PolicyChanged,
    #[error("the client said nothing for {} s", crate::serve::OPENING_LIMIT.as_secs())]
    Silent,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("TLS with the server failed: {0}")]
    ServerTls(io::Error),
    #[error("TLS with the client failed: {0}")]
    ClientTls(io::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
}

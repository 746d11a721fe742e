//! TLS with both sides of a connection whose requests get headers.
//!
//! The server comes first: which protocol it speaks is what the client is offered, so that requests can be passed on as
//! they are, and a server that does not prove to be the domain never gets one.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};
use torpor_types::DomainName;

use crate::authority::Authority;
use crate::error::Refusal;
use crate::headers::Protocol;
use crate::leaving::Leaving;

const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// Both ends, decrypted.
pub(crate) struct Intercepted<C> {
    pub(crate) client: server::TlsStream<C>,
    pub(crate) server: client::TlsStream<Leaving>,
    pub(crate) protocol: Protocol,
}

/// What TLS is done with.
#[derive(Debug)]
pub(crate) struct Interceptor {
    authority: Arc<Authority>,
    trust: ClientConfig,
}

// === impl Interceptor ===

impl Interceptor {
    /// Servers are verified as `trust` says.
    pub(crate) fn new(authority: Arc<Authority>, trust: ClientConfig) -> Self {
        Self { authority, trust }
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// How servers are verified.
    pub(crate) fn trust(&self) -> &ClientConfig {
        &self.trust
    }

    /// Speaks TLS with the server as the client of `name`, and with the client as `name`.
    pub(crate) async fn intercept<C: AsyncRead + AsyncWrite + Unpin>(
        &self,
        client: C,
        server: Leaving,
        name: &DomainName,
    ) -> Result<Intercepted<C>, Refusal> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), client).await.map_err(Refusal::ClientTls)?;
        let mut trust = self.trust.clone();
        if let Some(offered) = hello.client_hello().alpn() {
            let known = offered.filter(|protocol| matches!(*protocol, H2 | HTTP_1_1));
            trust.alpn_protocols = known.map(<[u8]>::to_vec).collect();
        }
        let server_name = ServerName::try_from(name.to_string()).map_err(std::io::Error::other)?;
        let connecting = TlsConnector::from(Arc::new(trust)).connect(server_name, server);
        let server = connecting.await.map_err(Refusal::ServerTls)?;
        let chosen = server.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let protocol = if chosen.as_deref() == Some(H2) { Protocol::Http2 } else { Protocol::Http1 };
        let config = self.server_config(name, chosen.as_deref().unwrap_or(HTTP_1_1))?;
        let client = hello.into_stream(Arc::new(config)).await.map_err(Refusal::ClientTls)?;
        Ok(Intercepted { client, server, protocol })
    }

    fn server_config(&self, name: &DomainName, protocol: &[u8]) -> Result<ServerConfig, Refusal> {
        let certificate = self.authority.certificate(name)?;
        let provider = self.trust.crypto_provider().clone();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }
}

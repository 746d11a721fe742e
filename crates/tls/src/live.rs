//! The certificate that is being shown.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::certificate::Certificate;

/// The protocols offered to clients, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What a TLS server shows to clients, replaceable while it serves. Clones are the same certificate.
#[derive(Debug, Clone, Default)]
pub struct LiveCertificate {
    shown: Arc<RwLock<Option<Arc<CertifiedKey>>>>,
}

// === impl LiveCertificate ===

impl LiveCertificate {
    /// One that has nothing to show yet: handshakes fail until there is.
    pub fn pending() -> LiveCertificate {
        LiveCertificate::default()
    }

    /// Shows `certificate` to clients that connect from now on.
    pub fn show(&self, certificate: &Certificate) {
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&certificate.key));
    }

    /// The server's own certificate (DER), without its chain, that clients get; empty if there is nothing to show.
    pub fn leaf(&self) -> Vec<u8> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        shown.as_ref().and_then(|key| key.cert.first()).map(|leaf| leaf.to_vec()).unwrap_or_default()
    }

    /// What makes TLS connections, HTTP/2 or HTTP/1.1 in them, of TCP connections.
    ///
    /// # Errors
    /// If the cryptography that was compiled in knows no version of TLS.
    pub fn acceptor(&self) -> Result<TlsAcceptor, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

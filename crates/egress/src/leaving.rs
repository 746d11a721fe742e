//! A connection that has left: to a server or to the user's proxy, there in TLS if the user says so.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use torpor_types::{EgressProxy, ProxyTls};

use crate::error::{CertificatesError, DialError};

/// A connection that has left.
#[derive(Debug)]
pub(crate) enum Leaving {
    /// As it is.
    Plain(TcpStream),
    /// Inside TLS.
    Tls(Box<BufReader<TlsStream<TcpStream>>>),
}

/// Reads the certificates of authorities from PEM.
///
/// # Errors
/// [`CertificatesError`] if there is none, or one that cannot be used.
pub fn authorities(pem: &str) -> Result<RootCertStore, CertificatesError> {
    let mut roots = RootCertStore::empty();
    trust_all(&mut roots, CertificateDer::pem_slice_iter(pem.as_bytes())).map_err(CertificatesError)?;
    if roots.is_empty() { Err(CertificatesError("there is none".to_owned())) } else { Ok(roots) }
}

/// Trusts each certificate there is; says what is wrong with the first that cannot be used.
pub(crate) fn trust_all<E: std::fmt::Display>(
    roots: &mut RootCertStore,
    certificates: impl Iterator<Item = Result<CertificateDer<'static>, E>>,
) -> Result<(), String> {
    for certificate in certificates {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Speaks TLS with `proxy`, which has to prove who it is.
pub(crate) async fn encrypt(
    stream: TcpStream,
    proxy: &EgressProxy,
    tls: &ProxyTls,
    trust: &ClientConfig,
) -> Result<Leaving, DialError> {
    let config = match &tls.ca_cert {
        None => trust.clone(),
        Some(pem) => ClientConfig::builder_with_provider(trust.crypto_provider().clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(authorities(pem).map_err(io::Error::other)?)
            .with_no_client_auth(),
    };
    let name = tls.server_name.clone().unwrap_or_else(|| proxy.address.host());
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = connecting.await.map_err(DialError::ProxyTls)?;
    Ok(Leaving::Tls(Box::new(BufReader::new(stream))))
}

// === impl Leaving ===

impl Leaving {
    /// Waits until the other side says something, or ends the connection, and leaves it to be read.
    pub(crate) async fn heard(&mut self) -> io::Result<()> {
        match self {
            Leaving::Plain(stream) => stream.peek(&mut [0]).await.map(drop),
            Leaving::Tls(stream) => stream.fill_buf().await.map(drop),
        }
    }

    /// The TCP connection under it.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Leaving::Plain(stream) => stream,
            Leaving::Tls(stream) => stream.get_ref().get_ref().0,
        }
    }
}

impl AsyncRead for Leaving {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Leaving::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Leaving::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Leaving {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Leaving::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Leaving::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Leaving::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Leaving::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Leaving::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Leaving::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

//! HTTPS: the second port of API and gateway, and where its certificate comes from.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpListener;
use torpor_gateway::Transport;
use torpor_tls::{CertificateError, CertificateFiles, LiveCertificate};

use crate::layout::DataDir;
use crate::settings::Settings;

/// The port, taken, and the certificate shown on it.
pub(crate) struct Https {
    /// The port.
    pub(crate) listener: TcpListener,
    /// What makes TLS connections of those that are accepted.
    pub(crate) transport: Transport,
    /// Where the certificate is: to be [followed](CertificateFiles::follow).
    pub(crate) files: CertificateFiles,
}

/// HTTPS cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpsError {
    /// No certificate was named, and there is none of our own.
    #[error(
        "there is no certificate for HTTPS: `torpor tls` makes one for local use, --tls-cert and --tls-key name files"
    )]
    NoCertificate,
    /// One file was named without the other.
    #[error("--tls-cert and --tls-key go together (both may name the same file): {0} is missing")]
    Half(&'static str),
    /// The files hold none that can be shown.
    #[error("the certificate for HTTPS cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    /// TLS itself.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The port.
    #[error("cannot listen on {address}: {cause}. Choose another with --https-listen")]
    Listen { address: SocketAddr, cause: std::io::Error },
}

// === impl Https ===

impl Https {
    /// Takes the port and reads the certificate; `None` if HTTPS is not to be served.
    pub(crate) async fn open(data_dir: &DataDir, settings: &Settings) -> Result<Option<Https>, HttpsError> {
        let Some(address) = settings.https_listen else { return Ok(None) };
        let (chain, key) = certificate_files(data_dir, settings)?;
        let shown = LiveCertificate::pending();
        let files = CertificateFiles::open(&chain, &key, shown.clone())?;
        let acceptor = shown.acceptor().map_err(|error| HttpsError::Tls(error.to_string()))?;
        let listener =
            TcpListener::bind(address).await.map_err(|cause| HttpsError::Listen { address, cause })?;
        let address = listener.local_addr().unwrap_or(address);
        tracing::info!(%address, certificate = %chain.display(), expires_at = %files.expires_at(), "serving HTTPS");
        Ok(Some(Https { listener, transport: Transport::Tls(acceptor), files }))
    }
}

/// The files that were named, else those of `torpor tls`.
fn certificate_files(data_dir: &DataDir, settings: &Settings) -> Result<(PathBuf, PathBuf), HttpsError> {
    match (&settings.tls_cert, &settings.tls_key) {
        (Some(chain), Some(key)) => Ok((chain.clone(), key.clone())),
        (Some(_), None) => Err(HttpsError::Half("--tls-key")),
        (None, Some(_)) => Err(HttpsError::Half("--tls-cert")),
        (None, None) => {
            let own = data_dir.tls().join(torpor_tls::Authority::SERVER_FILE);
            if own.exists() { Ok((own.clone(), own)) } else { Err(HttpsError::NoCertificate) }
        }
    }
}

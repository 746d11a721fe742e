//! A certificate as PEM files hold it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A chain and its private key, checked against each other.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    expires_at: Timestamp,
}

/// What is in the files cannot be shown to clients.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// There is no certificate in PEM form in it.
    #[error(
        "there is no certificate in {path}: {cause}. It has to hold PEM, the server's own certificate first"
    )]
    NoChain {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: pem::Error,
    },
    /// There is no private key in PEM form in it.
    #[error("there is no private key in {path}: {cause}. It has to hold one in PEM, without a passphrase")]
    NoKey {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: pem::Error,
    },
    /// The key is of a kind that is not known, or is not the certificate's.
    #[error("certificate and private key do not go together: {0}")]
    Mismatch(#[from] rustls::Error),
    /// The certificate is not one.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
}

// === impl Certificate ===

impl Certificate {
    /// A certificate from what was in two files, which errors name.
    pub(crate) fn parse(
        chain_pem: &[u8],
        key_pem: &[u8],
        chain_path: &Path,
        key_path: &Path,
    ) -> Result<Certificate, CertificateError> {
        let no_chain = |cause| CertificateError::NoChain { path: chain_path.to_owned(), cause };
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(chain_pem).collect::<Result<_, _>>().map_err(no_chain)?;
        let Some(first) = chain.first() else { return Err(no_chain(pem::Error::NoItemsFound)) };
        let expires_at = expiry(first)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|cause| CertificateError::NoKey { path: key_path.to_owned(), cause })?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        Ok(Certificate { key: Arc::new(key), expires_at })
    }

    /// The moment from which clients refuse it.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// Until when a certificate is valid.
pub(crate) fn expiry(der: &[u8]) -> Result<Timestamp, CertificateError> {
    let malformed = |error: &dyn std::fmt::Display| CertificateError::Malformed(error.to_string());
    let (_, parsed) = X509Certificate::from_der(der).map_err(|error| malformed(&error))?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|error| malformed(&error))
}

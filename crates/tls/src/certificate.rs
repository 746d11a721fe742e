//! A certificate as PEM files hold it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A chain and its private key, checked against each other.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    valid_from: Timestamp,
    expires_at: Timestamp,
    /// Host names in it, wildcards among them.
    names: Vec<String>,
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
    /// Reads a chain and its key; both may be in one file.
    pub(crate) fn read(chain: &Path, key: &Path) -> Result<Certificate, CertificateError> {
        Self::parse(&read(chain)?, &read(key)?, chain, key)
    }

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
        let (valid_from, expires_at) = validity(first)?;
        let names = host_names(first)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|cause| CertificateError::NoKey { path: key_path.to_owned(), cause })?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        Ok(Certificate { key: Arc::new(key), valid_from, expires_at, names })
    }

    /// Whether it is for exactly these host names.
    pub(crate) fn is_for(&self, names: &[String]) -> bool {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names
        };
        sorted(&self.names) == sorted(names)
    }

    /// The moment until which clients refuse it.
    pub fn valid_from(&self) -> Timestamp {
        self.valid_from
    }

    /// The moment from which clients refuse it.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// From when and until when a certificate is valid.
pub(crate) fn validity(der: &[u8]) -> Result<(Timestamp, Timestamp), CertificateError> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(malformed)?;
    let moment = |second| Timestamp::from_second(second).map_err(malformed);
    let validity = parsed.validity();
    Ok((moment(validity.not_before.timestamp())?, moment(validity.not_after.timestamp())?))
}

fn host_names(der: &[u8]) -> Result<Vec<String>, CertificateError> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(malformed)?;
    let names = parsed.subject_alternative_name().map_err(malformed)?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Ok(hosts.collect())
}

fn malformed(error: impl std::fmt::Display) -> CertificateError {
    CertificateError::Malformed(error.to_string())
}

/// What is in a file, or which file it was that cannot be read.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|cause| CertificateError::Read { path: path.to_owned(), cause })
}

//! The node's certificate authority: it signs the certificates under which the egress proxy poses as the domains of
//! header rules, to sandboxes that have such rules.
//!
//! Its key never leaves the node; sandboxes get its certificate, and trust it because they are told to.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};
use torpor_types::DomainName;

use crate::error::AuthorityError;

/// Whose certificate it is; the same on every node, because clients may look it up by its subject
/// (`torpor_envd_api::http::CA_LINK_NAME`).
/// Longest common name a certificate may have, in bytes. Names are ASCII.
const MAX_COMMON_NAME_BYTES: usize = 64;
const SUBJECT: &str = "Torpor egress proxy";
/// How long an authority lives: longer than anybody's snapshots.
const AUTHORITY_LIFE: Duration = Duration::days(3650);
/// How long a certificate lives; it is made anew after half of that.
const CERTIFICATE_LIFE: Duration = Duration::days(7);
/// Clocks in guests may be behind.
const BACKDATED: Duration = Duration::days(1);
/// Certificates kept.
const MAX_CERTIFICATES: usize = 1024;

/// A certificate authority.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// All certificates are for one key, because making keys is the slow part.
    key: KeyPair,
    certificates: Mutex<HashMap<DomainName, Issued>>,
}

struct Issued {
    at: OffsetDateTime,
    certificate: Arc<CertifiedKey>,
}

// === impl Authority ===

impl Authority {
    /// A new authority: certificate and private key, in PEM.
    pub fn generate() -> Result<String, AuthorityError> {
        let failed = |error| AuthorityError::new("made", error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - BACKDATED, now + AUTHORITY_LIFE);
        params.distinguished_name = named(SUBJECT);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(certificate.pem() + &key.serialize_pem())
    }

    /// The authority that [`Authority::generate`] made.
    pub fn from_pem(pem: &str) -> Result<Self, AuthorityError> {
        let unreadable = |error: &dyn fmt::Display| AuthorityError::new("read", error);
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| unreadable(&e))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| unreadable(&e))?;
        let key = KeyPair::try_from(&key).map_err(|e| unreadable(&e))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| unreadable(&e))?;
        let (public, _) =
            pem.split_once("-----BEGIN PRIVATE KEY").ok_or_else(|| unreadable(&"it has no key"))?;
        Ok(Self {
            pem: public.to_owned(),
            issuer,
            key: KeyPair::generate().map_err(|error| AuthorityError::new("used", error))?,
            certificates: Mutex::default(),
        })
    }

    /// Its certificate in PEM, for those who are to trust it.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for `name`, with its key.
    pub(crate) fn certificate(&self, name: &DomainName) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let now = OffsetDateTime::now_utc();
        let mut certificates = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |issued: &Issued| now - issued.at < CERTIFICATE_LIFE / 2;
        if let Some(issued) = certificates.get(name).filter(|issued| fresh(issued)) {
            return Ok(issued.certificate.clone());
        }
        if certificates.len() >= MAX_CERTIFICATES {
            certificates.clear();
        }
        let certificate = Arc::new(self.issue(name, now)?);
        certificates.insert(name.clone(), Issued { at: now, certificate: certificate.clone() });
        Ok(certificate)
    }

    fn issue(&self, name: &DomainName, now: OffsetDateTime) -> Result<CertifiedKey, AuthorityError> {
        let failed = |error: &dyn fmt::Display| AuthorityError::new("used", error);
        let certificate = self.signed(name, now)?;
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).map_err(|e| failed(&e))?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|e| failed(&e))?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
    }

    fn signed(&self, name: &DomainName, now: OffsetDateTime) -> Result<rcgen::Certificate, AuthorityError> {
        let failed = |error: &dyn fmt::Display| AuthorityError::new("used", error);
        let mut params = CertificateParams::new(vec![name.to_string()]).map_err(|e| failed(&e))?;
        (params.not_before, params.not_after) = (now - BACKDATED, now + CERTIFICATE_LIFE);
        // Another one than the authority's: OpenSSL takes a certificate that names itself as its issuer for one.
        params.distinguished_name = named(&name.as_str()[..name.as_str().len().min(MAX_COMMON_NAME_BYTES)]);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.signed_by(&self.key, &self.issuer).map_err(|e| failed(&e))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

// === impl AuthorityError ===

impl AuthorityError {
    fn new(what: &'static str, cause: impl fmt::Display) -> Self {
        Self { what, cause: cause.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn authority() -> Authority {
        Authority::from_pem(&Authority::generate().unwrap()).unwrap()
    }

    fn openssl(arguments: &[&str], input: &str) -> String {
        use std::io::Write as _;
        let mut openssl = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        openssl.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = openssl.wait_with_output().unwrap();
        assert!(output.status.success(), "openssl {arguments:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn the_link_name_is_the_one_openssl_looks_for() {
        let hash = openssl(&["x509", "-noout", "-subject_hash"], authority().certificate_pem());
        assert_eq!(format!("{hash}.0"), torpor_envd_api::http::CA_LINK_NAME);
    }

    #[test]
    fn openssl_accepts_what_the_authority_signs_however_long_the_name() {
        let authority = authority();
        let roots = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(roots.path(), authority.certificate_pem()).unwrap();
        let long = format!("{0}.{0}.example.com", "a".repeat(60));
        for name in ["api.example.com", &long] {
            let params = authority.signed(&name.parse().unwrap(), OffsetDateTime::now_utc()).unwrap();
            let verify = [
                "verify",
                "-x509_strict",
                "-verify_hostname",
                name,
                "-CAfile",
                roots.path().to_str().unwrap(),
            ];
            openssl(&verify, &params.pem());
        }
    }

    #[test]
    fn a_certificate_is_made_once_per_name_and_verifies_for_that_name_only() {
        let authority = authority();
        assert!(!authority.certificate_pem().contains("PRIVATE"));
        let certificate = authority.certificate(&"api.example.com".parse().unwrap()).unwrap();
        let again = authority.certificate(&"api.example.com".parse().unwrap()).unwrap();
        assert_eq!(certificate.cert, again.cert);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let verify = |name: &'static str| {
            use rustls::client::danger::ServerCertVerifier as _;
            let now = rustls::pki_types::UnixTime::now();
            verifier.verify_server_cert(&certificate.cert[0], &[], &name.try_into().unwrap(), &[], now)
        };
        verify("api.example.com").unwrap();
        assert!(verify("www.example.com").is_err());
    }
}

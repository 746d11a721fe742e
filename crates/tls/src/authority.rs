//! A private authority for local use: `torpor tls`.
//!
//! ```text
//!  <data>/tls/ca.pem      0644  the authority's certificate: what clients are told to trust
//!  <data>/tls/ca.key      0600  its key
//!  <data>/tls/server.pem  0600  key and chain of the server's certificate, in one file so that a renewal is one rename
//! ```

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use crate::certificate::validity;

/// How long the authority is valid.
const AUTHORITY_DAYS: i64 = 3650;

/// How long a server's certificate is valid: the most that every client accepts.
const SERVER_DAYS: i64 = 397;

/// A clock that is behind ours must not find the certificate to be of the future.
const CLOCK_SKEW: Duration = Duration::days(1);

/// A private authority, kept in a directory.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    pem: String,
    key_pem: String,
    expires_at: Timestamp,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The file with its key and chain.
    pub file: PathBuf,
    /// Until when it is valid.
    pub expires_at: Timestamp,
}

/// The authority cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The domain is none that certificates can be made for.
    #[error(
        "'{0}' is not a domain: it has to be a name such as e2b.test, of letters, digits and dashes, without a port"
    )]
    Domain(String),
    /// A file cannot be read or written.
    #[error("cannot use {path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The authority's certificate is there without its key.
    #[error(
        "{cert} is there, but not its key {key}: put the key back, or remove {cert} to make a new authority (which clients then have to be told to trust)"
    )]
    NoKey {
        /// The certificate.
        cert: PathBuf,
        /// Where the key should be.
        key: PathBuf,
    },
    /// It is not valid any more.
    #[error(
        "the authority in {0} has expired: remove ca.pem and ca.key there and run this again; clients then have to be told to trust the new one"
    )]
    Expired(PathBuf),
    /// The files hold something else, or a certificate cannot be made.
    #[error("certificates cannot be made with the authority in {dir}: {why}")]
    Unusable {
        /// Where it is.
        dir: PathBuf,
        /// Why.
        why: String,
    },
}

/// The names a certificate for `domain` has to have: the domain, everything one level below it (`api.{domain}` and
/// `{port}-{id}.{domain}` are), and what this host is called by itself.
///
/// # Errors
/// [`AuthorityError::Domain`].
pub fn names_for(domain: &str) -> Result<Vec<String>, AuthorityError> {
    let domain = domain.to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_domain =
        domain.len() <= 250 && domain.split('.').all(is_label) && domain.parse::<IpAddr>().is_err();
    if !is_domain {
        return Err(AuthorityError::Domain(domain));
    }
    let mut names = Vec::new();
    for name in [
        domain.clone(),
        format!("*.{domain}"),
        "localhost".into(),
        "*.localhost".into(),
        "127.0.0.1".into(),
        "::1".into(),
    ] {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

// === impl Authority ===

impl Authority {
    /// Name, within the authority's directory, of the file with the server's key and chain.
    pub const SERVER_FILE: &str = "server.pem";

    /// The authority in `dir`, made if there is none.
    ///
    /// # Errors
    /// [`AuthorityError`]; an authority that is there is never replaced.
    pub fn open_or_create(dir: &Path) -> Result<Authority, AuthorityError> {
        let (pem_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let made = std::fs::DirBuilder::new().mode(0o755).recursive(true).create(dir);
        made.map_err(|cause| AuthorityError::File { path: dir.to_owned(), cause })?;
        if let Some(pem) = read_if_there(&pem_path)? {
            let key = read_if_there(&key_path)?;
            let key_pem = key.ok_or(AuthorityError::NoKey { cert: pem_path, key: key_path })?;
            return Authority::new(dir, pem, key_pem);
        }
        let unusable =
            |error: rcgen::Error| AuthorityError::Unusable { dir: dir.to_owned(), why: error.to_string() };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
        let pem = authority_params().self_signed(&key).map_err(unusable)?.pem();
        let key_pem = key.serialize_pem();
        // The certificate last: where it is, the key is too.
        write(&key_path, &key_pem, 0o600)?;
        write(&pem_path, &pem, 0o644)?;
        Authority::new(dir, pem, key_pem)
    }

    fn new(dir: &Path, pem: String, key_pem: String) -> Result<Authority, AuthorityError> {
        let unusable = |why: String| AuthorityError::Unusable { dir: dir.to_owned(), why };
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        let (_, expires_at) = validity(&der).map_err(|error| unusable(error.to_string()))?;
        Ok(Authority { dir: dir.to_owned(), pem, key_pem, expires_at })
    }

    /// The file with its certificate, which clients have to trust.
    pub fn certificate_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Issues a certificate for `names` (host names, wildcards, addresses) in place of the one issued before.
    ///
    /// # Errors
    /// [`AuthorityError`]; the certificate of before is still there then.
    pub fn issue(&self, names: &[String]) -> Result<Issued, AuthorityError> {
        let now = Timestamp::now();
        if self.expires_at <= now {
            return Err(AuthorityError::Expired(self.dir.clone()));
        }
        let unusable =
            |error: rcgen::Error| AuthorityError::Unusable { dir: self.dir.clone(), why: error.to_string() };
        let authority_key = KeyPair::from_pem(&self.key_pem).map_err(unusable)?;
        let issuer = Issuer::from_ca_cert_pem(&self.pem, authority_key).map_err(unusable)?;
        let mut params = CertificateParams::new(names).map_err(unusable)?;
        params.distinguished_name = common_name(names.first().map_or("torpor", String::as_str));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let ends = moment(now) + Duration::days(SERVER_DAYS);
        params.not_before = moment(now) - CLOCK_SKEW;
        params.not_after = ends.min(moment(self.expires_at));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
        let certificate = params.signed_by(&key, &issuer).map_err(unusable)?;
        let (_, expires_at) = validity(certificate.der())
            .map_err(|error| AuthorityError::Unusable { dir: self.dir.clone(), why: error.to_string() })?;
        let file = self.dir.join(Self::SERVER_FILE);
        write(&file, &format!("{}{}{}", key.serialize_pem(), certificate.pem(), self.pem), 0o600)?;
        Ok(Issued { file, expires_at })
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = moment(Timestamp::now());
    // Authorities of several hosts can be told apart in a client's list.
    params.distinguished_name = common_name(&format!("Torpor private authority of {}", now.date()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(AUTHORITY_DAYS);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// To the second, which is all a certificate can say.
fn moment(time: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn read_if_there(path: &Path) -> Result<Option<String>, AuthorityError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(AuthorityError::File { path: path.to_owned(), cause }),
    }
}

/// Replaces a file in one step by one that never had another mode.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let replaced = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let permissions = std::fs::Permissions::from_mode(mode);
        let mut new = tempfile::Builder::new().permissions(permissions).tempfile_in(dir)?;
        new.write_all(text.as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    replaced().map_err(|cause| AuthorityError::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn running_it_again_renews_the_certificate_and_keeps_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open_or_create(dir.path()).unwrap();
        let names = names_for("e2b.test").unwrap();
        let file = first.issue(&names).unwrap().file;
        let old = std::fs::read(&file).unwrap();
        let second = Authority::open_or_create(dir.path()).unwrap();
        assert_eq!(first.pem, second.pem);
        second.issue(&names).unwrap();
        assert_ne!(std::fs::read(&file).unwrap(), old);
    }

    #[test]
    fn only_the_owner_reads_the_keys_and_everybody_the_authoritys_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let issued = authority.issue(&names_for("e2b.test").unwrap()).unwrap();
        assert_eq!(mode(&dir.path().join("ca.key")), 0o600);
        assert_eq!(mode(&issued.file), 0o600);
        assert_eq!(mode(&authority.certificate_file()), 0o644);
    }

    #[test]
    fn a_lost_key_is_no_reason_to_replace_an_authority_that_clients_trust() {
        let dir = tempfile::tempdir().unwrap();
        Authority::open_or_create(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(Authority::open_or_create(dir.path()), Err(AuthorityError::NoKey { .. })));
    }

    #[test]
    fn a_certificate_names_the_domain_its_subdomains_and_this_host() {
        let names = names_for("E2B.test").unwrap();
        assert_eq!(names, ["e2b.test", "*.e2b.test", "localhost", "*.localhost", "127.0.0.1", "::1"]);
        assert_eq!(names_for("localhost").unwrap(), ["localhost", "*.localhost", "127.0.0.1", "::1"]);
    }

    proptest! {
        #[test]
        fn what_is_no_domain_is_refused_and_what_is_can_be_signed(text in "[a-z0-9.:*_-]{0,20}") {
            let Ok(names) = names_for(&text) else { return Ok(()) };
            prop_assert!(!text.contains([':', '*', '_']));
            prop_assert!(CertificateParams::new(names).is_ok());
        }
    }
}

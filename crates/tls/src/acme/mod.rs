//! Certificates from a public authority, by ACME (RFC 8555), got and renewed without anybody's doing.
//!
//! The authority wants proof that the domain is ours, by a *challenge*: `http-01`, a text under a path of the domain on
//! port 80, or `dns-01`, a TXT record. Only `dns-01` proves a wildcard, which sandboxes under names of their own need;
//! a program of the operator's, the *hook*, sets and removes the records, for every DNS provider has its own way.
//!
//! ```text
//!  <data>/tls/acme/account.json     0600  the account's key, and at which authority it is
//!  <data>/tls/acme/certificate.pem  0600  key and chain
//! ```
//!
//! `instant-acme` speaks the protocol. It leaves the challenges to its user, which is what a hook needs;
//! `rustls-acme`, the other one that is well kept, brings a listener of its own and has no `dns-01`.

mod account;
mod dns;
mod error;
mod http;
mod order;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tracing::{info, warn};

use self::account::account;
use crate::authority::write;
use crate::certificate::Certificate;
use crate::live::LiveCertificate;

pub use self::dns::DnsHook;
pub use self::error::AcmeError;
pub use self::http::HttpChallenges;

/// Let's Encrypt, for certificates that browsers trust.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// First wait after a failure, then twice as long each time: authorities take few failures an hour.
const RETRY_FIRST: Duration = Duration::from_secs(300);

/// Longest wait after a failure.
const RETRY_LONGEST: Duration = Duration::from_secs(6 * 3600);

/// Longest time after which it is looked whether a renewal is due: a host may sleep.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(3600);

/// How the domain is proven to be ours.
#[derive(Debug, Clone)]
pub enum Challenge {
    /// By texts that somebody serves on the domain's port 80: no wildcards.
    Http01(HttpChallenges),
    /// By TXT records.
    Dns01(DnsHook),
}

/// What to get a certificate for, and from where.
#[derive(Debug, Clone)]
pub struct AcmeOptions {
    /// Where account and certificate are kept.
    pub dir: PathBuf,
    /// URL of the authority's directory.
    pub directory: String,
    /// PEM file of the only authority trusted to be behind that URL, instead of the host's list.
    pub root: Option<PathBuf>,
    /// Address for the authority's notices.
    pub contact: Option<String>,
    /// The domain, without a port.
    pub domain: String,
    /// How it is proven.
    pub challenge: Challenge,
}

/// A certificate that is kept valid.
#[derive(Debug)]
pub struct Acme {
    options: AcmeOptions,
    shown: LiveCertificate,
    certificate: Option<Certificate>,
}

// === impl Acme ===

impl Acme {
    /// Shows, as `shown`, the certificate that was got earlier, if it is for the same names.
    ///
    /// # Errors
    /// [`AcmeError::File`] if the directory cannot be used.
    pub fn open(options: AcmeOptions, shown: LiveCertificate) -> Result<Acme, AcmeError> {
        let made = std::fs::create_dir_all(&options.dir);
        made.map_err(|cause| AcmeError::File { path: options.dir.clone(), cause })?;
        let mut acme = Acme { options, shown, certificate: None };
        let file = acme.file();
        if file.exists() {
            match Certificate::read(&file, &file) {
                Ok(certificate) if certificate.is_for(&acme.names()) => acme.show(certificate),
                Ok(_) => {
                    info!(file = %file.display(), "the certificate there is for other names; a new one is got")
                }
                Err(error) => {
                    warn!(%error, "the certificate that was got earlier cannot be used; a new one is got")
                }
            }
        }
        Ok(acme)
    }

    /// What the certificate names.
    pub fn names(&self) -> Vec<String> {
        let domain = self.options.domain.to_ascii_lowercase();
        let other = match &self.options.challenge {
            Challenge::Dns01(_) => format!("*.{domain}"),
            Challenge::Http01(_) => format!("api.{domain}"),
        };
        vec![domain, other]
    }

    /// The certificate that is shown; `None` until the first one was got.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// When the next certificate should be got: now, or when two thirds of this one's life have passed.
    pub fn due_at(&self) -> Timestamp {
        self.certificate.as_ref().map_or(Timestamp::UNIX_EPOCH, |certificate| {
            renewal(certificate.valid_from(), certificate.expires_at())
        })
    }

    /// Gets a new certificate, and shows it from then on.
    ///
    /// # Errors
    /// [`AcmeError`]; the certificate of before, if there is one, goes on being shown.
    pub async fn renew(&mut self) -> Result<(), AcmeError> {
        let account = account(&self.options).await?;
        let pem = order::obtain(&account, &self.options, &self.names()).await?;
        let file = self.file();
        let certificate = Certificate::parse(pem.as_bytes(), pem.as_bytes(), &file, &file)?;
        write(&file, &pem, 0o600).map_err(|error| AcmeError::Write(error.to_string()))?;
        self.show(certificate);
        Ok(())
    }

    /// Keeps the certificate valid for ever, and logs what it does.
    pub async fn follow(mut self) {
        let mut wait_after_failure = RETRY_FIRST;
        loop {
            let left = Timestamp::now().duration_until(self.due_at());
            if left > SignedDuration::ZERO {
                tokio::time::sleep(left.unsigned_abs().min(LOOK_AT_LEAST_EVERY)).await;
                continue;
            }
            let names = self.names().join(", ");
            info!(%names, directory = %self.options.directory, "getting a certificate");
            match self.renew().await {
                Ok(()) => {
                    wait_after_failure = RETRY_FIRST;
                    info!(%names, next = %self.due_at(), "a new certificate");
                }
                Err(error) => {
                    warn!(%error, retry_in_s = wait_after_failure.as_secs(), "no certificate was got");
                    tokio::time::sleep(wait_after_failure).await;
                    wait_after_failure = (wait_after_failure * 2).min(RETRY_LONGEST);
                }
            }
        }
    }

    fn file(&self) -> PathBuf {
        self.options.dir.join("certificate.pem")
    }

    fn show(&mut self, certificate: Certificate) {
        self.shown.show(&certificate);
        self.certificate = Some(certificate);
    }
}

// === impl AcmeOptions ===

impl AcmeOptions {
    fn account_file(&self) -> PathBuf {
        Path::new(&self.dir).join("account.json")
    }
}

fn renewal(valid_from: Timestamp, expires_at: Timestamp) -> Timestamp {
    valid_from + valid_from.duration_until(expires_at) * 2 / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
        let day = |day: i64| Timestamp::from_second(day * 86_400).unwrap();
        assert_eq!(renewal(day(0), day(90)), day(60));
        assert_eq!(renewal(day(30), day(36)), day(34));
    }

    #[test]
    fn only_dns_proves_a_wildcard() {
        let acme = |challenge| Acme {
            options: AcmeOptions {
                dir: PathBuf::new(),
                directory: LETS_ENCRYPT.to_owned(),
                root: None,
                contact: None,
                domain: "Example.com".to_owned(),
                challenge,
            },
            shown: LiveCertificate::pending(),
            certificate: None,
        };
        let dns = acme(Challenge::Dns01(DnsHook::new("/bin/true".into())));
        assert_eq!(dns.names(), ["example.com", "*.example.com"]);
        assert_eq!(
            acme(Challenge::Http01(HttpChallenges::default())).names(),
            ["example.com", "api.example.com"]
        );
    }
}

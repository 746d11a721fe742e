//! Certificate files that somebody else renews.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use crate::certificate::{Certificate, CertificateError, read};
use crate::live::LiveCertificate;

/// How often the files are looked at.
///
/// They are read, not watched: certbot and Kubernetes replace symbolic links on the way to a file, of which a watch on
/// the file or its directory hears nothing, and reading a few kilobytes costs nothing.
const EVERY: Duration = Duration::from_secs(2);

/// Two PEM files (or one that is both), and the certificate last read from them.
#[derive(Debug)]
pub struct CertificateFiles {
    chain: PathBuf,
    key: PathBuf,
    /// What was in the files when they were last looked at; nothing if they could not be read.
    seen: Option<(Vec<u8>, Vec<u8>)>,
    expires_at: Timestamp,
    shown: LiveCertificate,
}

// === impl CertificateFiles ===

impl CertificateFiles {
    /// Reads the files and shows what is in them as `shown`.
    ///
    /// # Errors
    /// [`CertificateError`] when there is nothing to be shown in them.
    pub fn open(
        chain: &Path,
        key: &Path,
        shown: LiveCertificate,
    ) -> Result<CertificateFiles, CertificateError> {
        let found = (read(chain)?, read(key)?);
        let certificate = Certificate::parse(&found.0, &found.1, chain, key)?;
        shown.show(&certificate);
        Ok(CertificateFiles {
            chain: chain.to_owned(),
            key: key.to_owned(),
            seen: Some(found),
            expires_at: certificate.expires_at(),
            shown,
        })
    }

    /// Until when the certificate that is shown is valid.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Looks at the files once and takes up what changed; false if nothing did.
    ///
    /// # Errors
    /// [`CertificateError`], once for each change, if they became something that cannot be shown: the certificate of
    /// before goes on being shown. Two files are replaced one after the other, and do not go together in between.
    pub fn look(&mut self) -> Result<bool, CertificateError> {
        let found = match read(&self.chain).and_then(|chain| Ok((chain, read(&self.key)?))) {
            Ok(found) => found,
            Err(error) => return self.seen.take().map_or(Ok(false), |_| Err(error)),
        };
        if self.seen.as_ref() == Some(&found) {
            return Ok(false);
        }
        let parsed = Certificate::parse(&found.0, &found.1, &self.chain, &self.key);
        self.seen = Some(found);
        let certificate = parsed?;
        self.expires_at = certificate.expires_at();
        self.shown.show(&certificate);
        Ok(true)
    }

    /// Takes up changes for ever, and logs each.
    pub async fn follow(mut self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let looked = tokio::task::spawn_blocking(move || (self.look(), self)).await;
            let Ok((looked, files)) = looked.inspect_err(
                |error| warn!(%error, "changes of the certificate's files are not taken up any more"),
            ) else {
                return;
            };
            self = files;
            match looked {
                Ok(false) => {}
                Ok(true) => {
                    info!(file = %self.chain.display(), expires_at = %self.expires_at, "a new certificate");
                }
                Err(error) => {
                    warn!(%error, "the new certificate cannot be used; the one of before goes on being shown");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, names_for};

    #[test]
    fn a_new_certificate_is_taken_up_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(&dir.path().join("tls")).unwrap();
        let issue = || authority.issue(&names_for("e2b.test").unwrap()).unwrap();
        let file = issue().file;
        let shown = LiveCertificate::pending();
        let mut files = CertificateFiles::open(&file, &file, shown.clone()).unwrap();
        let first = shown.leaf();
        assert!(!files.look().unwrap());

        issue();
        assert!(files.look().unwrap());
        let second = shown.leaf();
        assert_ne!(first, second);

        let good = std::fs::read(&file).unwrap();
        for broken in [&b"no PEM"[..], &good[..good.len() / 2]] {
            std::fs::write(&file, broken).unwrap();
            let error = files.look().unwrap_err().to_string();
            assert!(error.contains("server.pem"), "{error}");
            assert!(!files.look().unwrap(), "a refusal is reported once");
            assert_eq!(shown.leaf(), second);
        }
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(files.look(), Err(CertificateError::Read { .. })));
        assert!(!files.look().unwrap());
        std::fs::write(&file, &good).unwrap();
        assert!(files.look().unwrap());
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(&dir.path().join("tls")).unwrap();
        let names = names_for("e2b.test").unwrap();
        let first = std::fs::read(authority.issue(&names).unwrap().file).unwrap();
        let chain = dir.path().join("first.pem");
        std::fs::write(&chain, first).unwrap();
        let key = authority.issue(&names).unwrap().file;
        let error = CertificateFiles::open(&chain, &key, LiveCertificate::pending()).unwrap_err();
        assert!(matches!(error, CertificateError::Mismatch(_)), "{error}");
    }
}

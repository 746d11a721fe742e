//! HTTPS: the second port of API and gateway, and where its certificate comes from.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use torpor_control::http::Routes;
use torpor_gateway::{Front, Transport};
use torpor_tls::{
    Acme, AcmeError, AcmeOptions, Authority, CertificateError, CertificateFiles, Challenge, DnsHook,
    HttpChallenges, LETS_ENCRYPT, LiveCertificate,
};

use crate::layout::DataDir;
use crate::settings::{AcmeChallenge, Settings};

/// The ports, taken, and the certificate shown on the one for HTTPS.
pub(crate) struct Https {
    /// What an ACME authority may ask for over plain HTTP.
    pub(crate) challenges: HttpChallenges,
    listener: TcpListener,
    transport: Transport,
    source: Source,
    /// The port that answers challenges and nothing else.
    challenges_listener: Option<TcpListener>,
}

/// Where the certificate comes from.
enum Source {
    /// From files that somebody else renews.
    Files(CertificateFiles),
    /// From an authority, by ACME.
    Acme(Box<Acme>),
}

/// HTTPS cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpsError {
    /// No certificate was named, and there is none of our own.
    #[error(
        "there is no certificate for HTTPS: `torpor tls` makes one for local use, --tls-cert and --tls-key name files, \
         --acme gets one"
    )]
    NoCertificate,
    /// Settings that contradict each other, or lack one that they need.
    #[error("{0}")]
    Settings(&'static str),
    /// The files hold none that can be shown.
    #[error("the certificate for HTTPS cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    /// ACME has no place to work in.
    #[error(transparent)]
    Acme(#[from] AcmeError),
    /// TLS itself.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// A port.
    #[error("cannot listen on {address}: {cause}. Choose another with {setting}")]
    Listen { address: SocketAddr, setting: &'static str, cause: std::io::Error },
}

// === impl Https ===

impl Https {
    /// Takes the ports and reads the certificate; `None` if HTTPS is not to be served.
    pub(crate) async fn open(data_dir: &DataDir, settings: &Settings) -> Result<Option<Https>, HttpsError> {
        let Some(address) = settings.https_listen else {
            let half = settings.acme.is_some() || settings.tls_cert.is_some() || settings.tls_key.is_some();
            let missing = "a certificate for HTTPS is named, but no --https-listen to serve it on";
            return if half { Err(HttpsError::Settings(missing)) } else { Ok(None) };
        };
        let shown = LiveCertificate::pending();
        let challenges = HttpChallenges::default();
        let source = match settings.acme {
            None => {
                let (chain, key) = certificate_files(data_dir, settings)?;
                Source::Files(CertificateFiles::open(&chain, &key, shown.clone())?)
            }
            Some(kind) => {
                let options = acme_options(data_dir, settings, kind, challenges.clone())?;
                Source::Acme(Box::new(Acme::open(options, shown.clone())?))
            }
        };
        let acceptor = shown.acceptor().map_err(|error| HttpsError::Tls(error.to_string()))?;
        let listener = listen(address, "--https-listen").await?;
        let challenges_listener = match settings.acme_http_listen {
            None => None,
            Some(address) => Some(listen(address, "--acme-http-listen").await?),
        };
        let address = listener.local_addr().unwrap_or(address);
        tracing::info!(%address, expires_at = source.expires_at(), "serving HTTPS");
        let transport = Transport::Tls(acceptor);
        Ok(Some(Https { challenges, listener, transport, source, challenges_listener }))
    }

    /// Serves `front` until `stop` is cancelled, and keeps the certificate up to date meanwhile.
    pub(crate) async fn serve(self, front: Front<Routes, axum::Router>, stop: CancellationToken) {
        let following = tokio::spawn(self.source.follow());
        let encrypted = torpor_gateway::serve(self.listener, self.transport, front, stop.clone());
        let challenges = async {
            if let Some(listener) = self.challenges_listener {
                let router = challenge_router(self.challenges);
                torpor_gateway::serve(listener, Transport::Plain, router, stop).await;
            }
        };
        tokio::join!(encrypted, challenges);
        following.abort();
    }
}

// === impl Source ===

impl Source {
    /// Keeps the certificate that is shown up to date, for ever.
    async fn follow(self) {
        match self {
            Source::Files(files) => files.follow().await,
            Source::Acme(acme) => acme.follow().await,
        }
    }

    fn expires_at(&self) -> String {
        match self {
            Source::Files(files) => files.expires_at().to_string(),
            Source::Acme(acme) => {
                acme.certificate().map_or("no certificate yet".to_owned(), |it| it.expires_at().to_string())
            }
        }
    }
}

/// Answers what an ACME authority asks for, and nothing else.
pub(crate) fn challenge_router(challenges: HttpChallenges) -> axum::Router {
    let answer = async |State(challenges): State<HttpChallenges>, request: Request| -> Response {
        match challenges.answer(request.uri().path()) {
            Some(answer) => answer.into_response(),
            None => (StatusCode::NOT_FOUND, "No certificate is being got with this").into_response(),
        }
    };
    axum::Router::new().route(HttpChallenges::ROUTE, get(answer)).with_state(challenges)
}

async fn listen(address: SocketAddr, setting: &'static str) -> Result<TcpListener, HttpsError> {
    TcpListener::bind(address).await.map_err(|cause| HttpsError::Listen { address, setting, cause })
}

/// The files that were named, else those of `torpor tls`.
fn certificate_files(data_dir: &DataDir, settings: &Settings) -> Result<(PathBuf, PathBuf), HttpsError> {
    match (&settings.tls_cert, &settings.tls_key) {
        (Some(chain), Some(key)) => Ok((chain.clone(), key.clone())),
        (None, None) => {
            let own = data_dir.tls().join(Authority::SERVER_FILE);
            if own.exists() { Ok((own.clone(), own)) } else { Err(HttpsError::NoCertificate) }
        }
        _ => Err(HttpsError::Settings("--tls-cert and --tls-key go together; both may name the same file")),
    }
}

fn acme_options(
    data_dir: &DataDir,
    settings: &Settings,
    kind: AcmeChallenge,
    challenges: HttpChallenges,
) -> Result<AcmeOptions, HttpsError> {
    let missing = |what| Err(HttpsError::Settings(what));
    if settings.tls_cert.is_some() || settings.tls_key.is_some() {
        return missing("--acme gets a certificate and --tls-cert names one: leave one of them out");
    }
    let Some(domain) = &settings.domain else {
        return missing("--acme needs the --domain to get a certificate for");
    };
    let challenge = match (kind, &settings.acme_dns_hook) {
        (AcmeChallenge::Http01, _) => {
            tracing::warn!(
                "http-01 proves no wildcard: sandboxes are reached by header only, or plainly, but not as https://{{port}}-{{id}}.{domain}; \
                 dns-01 would"
            );
            Challenge::Http01(challenges)
        }
        (AcmeChallenge::Dns01, Some(hook)) => Challenge::Dns01(DnsHook::new(hook.clone())),
        (AcmeChallenge::Dns01, None) => {
            return missing("--acme dns-01 needs an --acme-dns-hook, a program that sets TXT records");
        }
    };
    Ok(AcmeOptions {
        dir: data_dir.tls().join("acme"),
        directory: settings.acme_directory.clone().unwrap_or_else(|| LETS_ENCRYPT.to_owned()),
        root: settings.acme_root.clone(),
        contact: settings.acme_contact.clone(),
        domain: without_port(domain).to_owned(),
        challenge,
    })
}

/// The name in a domain that may hold a port.
pub(crate) fn without_port(domain: &str) -> &str {
    match domain.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => domain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(settings: Settings) -> String {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::create(dir.path()).unwrap();
        let opened = Https::open(&data_dir, &settings).await;
        opened.err().map(|error| error.to_string()).expect("this cannot be served")
    }

    #[tokio::test]
    async fn settings_that_cannot_be_served_are_refused_with_the_way_out() {
        let https = || Settings { https_listen: Some(([127, 0, 0, 1], 0).into()), ..Settings::default() };
        assert!(refusal(https()).await.contains("torpor tls"));
        let half = Settings { tls_cert: Some("a.pem".into()), ..https() };
        assert!(refusal(half).await.contains("go together"));
        let unserved = Settings { acme: Some(AcmeChallenge::Http01), ..Settings::default() };
        assert!(refusal(unserved).await.contains("--https-listen"));
        let nowhere = Settings { acme: Some(AcmeChallenge::Http01), ..https() };
        assert!(refusal(nowhere).await.contains("--domain"));
        let domain = Some("example.com:8443".to_owned());
        let no_hook = Settings { acme: Some(AcmeChallenge::Dns01), domain, ..https() };
        assert!(refusal(no_hook).await.contains("--acme-dns-hook"));
    }

    #[test]
    fn a_domain_is_certified_without_its_port() {
        assert_eq!(without_port("example.com:8443"), "example.com");
        assert_eq!(without_port("example.com"), "example.com");
    }
}

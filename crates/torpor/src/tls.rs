//! `torpor tls`: a private authority and a certificate, for a domain that exists on this host only.

use std::path::Path;

use jiff::tz::TimeZone;
use serde_json::{Value, json};
use torpor_tls::{Authority, AuthorityError, Issued, names_for};

use crate::https::without_port;
use crate::layout::DataDir;
use crate::settings::{Settings, SettingsError};

/// The domain where none is said: `.test` is reserved for such use (RFC 6761) and exists nowhere else.
const DEFAULT_DOMAIN: &str = "e2b.test";

/// The port where none is said.
const DEFAULT_PORT: u16 = 8443;

/// What `torpor tls` can be told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TlsOptions {
    /// Domain to certify, with everything one level below it [default: the setting `domain`, or e2b.test]
    #[arg(long, env = "TORPOR_DOMAIN")]
    domain: Option<String>,
    /// Print JSON instead of advice
    #[arg(long)]
    json: bool,
}

/// There is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The data directory.
    #[error("cannot use the data directory: {0}")]
    DataDir(#[from] std::io::Error),
    /// The settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// What was made, and what clients need to know of it.
struct Made {
    names: Vec<String>,
    authority: String,
    issued: Issued,
    domain: String,
    port: u16,
}

/// Makes the authority if there is none, and a certificate in place of the one before. Returns what to print.
pub(crate) fn run(data_dir: &Path, options: &TlsOptions) -> Result<String, TlsError> {
    let data_dir = DataDir::create(data_dir)?;
    let settings = Settings::default().with_file(&data_dir)?;
    let asked = options.domain.as_deref().or(settings.domain.as_deref()).unwrap_or(DEFAULT_DOMAIN);
    let domain = without_port(asked);
    let port = asked[domain.len()..].strip_prefix(':').and_then(|port| port.parse().ok());
    let names = names_for(domain)?;
    let authority = Authority::open_or_create(&data_dir.tls())?;
    let issued = authority.issue(&names)?;
    let port = port.or(settings.https_listen.map(|address| address.port())).unwrap_or(DEFAULT_PORT);
    let authority = authority.certificate_file().display().to_string();
    let made = Made { names, authority, issued, domain: domain.to_ascii_lowercase(), port };
    Ok(if options.json { format!("{:#}", made.json()) } else { made.advice() })
}

// === impl Made ===

impl Made {
    /// The domain as clients are told it.
    fn address(&self) -> String {
        if self.port == 443 { self.domain.clone() } else { format!("{}:{}", self.domain, self.port) }
    }

    fn json(&self) -> Value {
        json!({
            "authority": self.authority,
            "certificate": self.issued.file,
            "expiresAt": self.issued.expires_at.to_string(),
            "names": self.names,
            "environment": {
                "E2B_DOMAIN": self.address(),
                "SSL_CERT_FILE": self.authority,
                "NODE_EXTRA_CA_CERTS": self.authority,
            },
        })
    }

    fn advice(&self) -> String {
        let Made { names, authority, issued, domain, port } = self;
        let (names, address) = (names.join(", "), self.address());
        let until = issued.expires_at.to_zoned(TimeZone::UTC).date();
        let file = issued.file.display();
        format!(
            "\
Certificate for {names}
valid until {until}; run this again to renew it (a running server takes it up, and clients go on trusting it).

  authority    {authority}   what clients trust
  certificate  {file}   key and chain, for the server alone

Serve with it:

  torpor serve --https-listen 127.0.0.1:{port} --domain {address}

Clients have to trust the authority, one of:

  Python    export SSL_CERT_FILE={authority}
  Node.js   export NODE_EXTRA_CA_CERTS={authority}
  curl      curl --cacert {authority} …
  the host  cp {authority} /usr/local/share/ca-certificates/torpor.crt && update-ca-certificates
  browsers  import it among the authorities (Firefox and Chromium have lists of their own)

SSL_CERT_FILE replaces Python's list: a program that reaches other hosts too needs the host's list with this in it,
SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt after the line for the host.

Names have to lead here, all of *.{domain}. With dnsmasq as the resolver:

  echo 'address=/{domain}/127.0.0.1' > /etc/dnsmasq.d/torpor.conf && systemctl restart dnsmasq

/etc/hosts knows no wildcards; a line there serves for the API (api.{domain}) and for sandboxes that are known.

Then, for every SDK, old and new:

  export E2B_DOMAIN={address}
  export E2B_API_KEY=<a key from `torpor key create`>"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(domain: &str, port: u16) -> Made {
        Made {
            names: names_for(domain).unwrap(),
            authority: "/var/lib/torpor/tls/ca.pem".to_owned(),
            issued: Issued {
                file: "/var/lib/torpor/tls/server.pem".into(),
                expires_at: "2027-12-27T12:00:00Z".parse().unwrap(),
            },
            domain: domain.to_owned(),
            port,
        }
    }

    #[test]
    fn it_says_how_to_serve_and_how_clients_trust_it() {
        insta::assert_snapshot!(made("e2b.test", 8443).advice());
    }

    #[test]
    fn programs_get_the_same_as_json() {
        insta::assert_snapshot!(format!("{:#}", made("sandboxes.example.com", 443).json()));
    }

    #[test]
    fn the_domain_of_the_settings_is_certified_without_its_port() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::create(dir.path()).unwrap();
        std::fs::write(data_dir.config(), "domain = \"box.test:9443\"").unwrap();
        let options = TlsOptions { domain: None, json: true };
        let printed: Value = serde_json::from_str(&run(dir.path(), &options).unwrap()).unwrap();
        assert_eq!(printed["environment"]["E2B_DOMAIN"], "box.test:9443");
        assert_eq!(printed["names"][1], "*.box.test");
    }
}

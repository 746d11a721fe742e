//! ACME against Pebble, the authority that Let's Encrypt makes for tests, and its DNS server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use torpor_tls::{
    Acme, AcmeOptions, Authority, CertificateFiles, Challenge, DnsHook, HttpChallenges, LiveCertificate,
    names_for,
};

const DOMAIN: &str = "box.example.test";

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Pebble and its DNS server on free ports.
struct Pebble {
    dir: tempfile::TempDir,
    directory: String,
    /// Where it asks for proofs over HTTP.
    http_port: u16,
    /// Where TXT records are set.
    dns_control: u16,
    _processes: [Running; 2],
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Pebble {
    async fn start() -> Pebble {
        let dir = tempfile::tempdir().unwrap();
        let [api, management, http_port, tls_port, dns, dns_control] = [(); 6].map(|()| free_port());
        // Pebble's own API is HTTPS too.
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let server = authority.issue(&names_for("localhost").unwrap()).unwrap().file;
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{api}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": server, "privateKey": server,
            "httpPort": http_port, "tlsPort": tls_port,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        let config_file = dir.path().join("pebble.json");
        std::fs::write(&config_file, config.to_string()).unwrap();
        let dns_server = Command::new("pebble-challtestsrv")
            .args(["-dns01", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{dns_control}")])
            .args([
                "-defaultIPv4",
                "127.0.0.1",
                "-defaultIPv6",
                "",
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the package pebble has to be installed");
        let pebble = Command::new("pebble")
            .args(["-config", config_file.to_str().unwrap(), "-dnsserver", &format!("127.0.0.1:{dns}")])
            .env("PEBBLE_VA_NOSLEEP", "1")
            // Every order has to be proven anew.
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the package pebble has to be installed");
        let processes = [Running(dns_server), Running(pebble)];
        for port in [api, dns_control] {
            until(|| async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await;
        }
        let directory = format!("https://localhost:{api}/dir");
        Pebble { dir, directory, http_port, dns_control, _processes: processes }
    }

    fn options(&self, challenge: Challenge) -> AcmeOptions {
        AcmeOptions {
            dir: self.dir.path().join("acme"),
            directory: self.directory.clone(),
            root: Some(self.dir.path().join("ca.pem")),
            contact: Some("operator@example.test".to_owned()),
            domain: DOMAIN.to_owned(),
            challenge,
        }
    }

    /// A hook that sets records in the DNS server.
    fn hook(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let program = self.dir.path().join("hook");
        let script = format!(
            "#!/usr/bin/env python3\nimport json, sys, urllib.request\n\
             action, name, value = sys.argv[1:]\n\
             what = {{'present': 'set-txt', 'cleanup': 'clear-txt'}}[action]\n\
             body = json.dumps({{'host': name, 'value': value}}).encode()\n\
             urllib.request.urlopen('http://127.0.0.1:{}/' + what, body)\n",
            self.dns_control
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        program
    }
}

async fn until<F: Future<Output = bool>>(probe: impl Fn() -> F) {
    let asked = async {
        while !probe().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.expect("this should have happened long ago");
}

/// Serves proofs over HTTP, as the server does on its plain port.
async fn serve_proofs(port: u16, challenges: HttpChallenges) {
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request[..read]).into_owned();
            let answer = challenges.answer(text.split(' ').nth(1).unwrap()).unwrap_or_default();
            let status = if answer.is_empty() { "404 Not Found" } else { "200 OK" };
            let response = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
                answer.len()
            );
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    });
}

fn names_in(file: &Path) -> Vec<String> {
    let der = CertificateDer::from_pem_file(file).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let mut names: Vec<String> = names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => (*name).to_owned(),
            other => panic!("{other:?}"),
        })
        .collect();
    names.sort();
    names
}

#[tokio::test]
#[ignore = "needs pebble: run by make test"]
async fn a_wildcard_is_proven_by_records_that_the_hook_sets_and_removes() {
    let pebble = Pebble::start().await;
    let shown = LiveCertificate::pending();
    let options = pebble.options(Challenge::Dns01(DnsHook::new(pebble.hook())));
    let mut acme = Acme::open(options.clone(), shown.clone()).unwrap();
    assert!(acme.certificate().is_none() && shown.leaf().is_empty());
    acme.renew().await.unwrap();
    let file = options.dir.join("certificate.pem");
    assert_eq!(names_in(&file), [format!("*.{DOMAIN}"), DOMAIN.to_owned()]);
    let first = shown.leaf();
    assert!(!first.is_empty());
    assert!(acme.due_at() > jiff::Timestamp::now(), "a fresh certificate needs no renewal");
    CertificateFiles::open(&file, &file, LiveCertificate::pending()).unwrap();

    // The next server shows it at once, and renews with the same account.
    let account = std::fs::read(options.dir.join("account.json")).unwrap();
    let shown = LiveCertificate::pending();
    let mut acme = Acme::open(options.clone(), shown.clone()).unwrap();
    assert_eq!(shown.leaf(), first);
    acme.renew().await.unwrap();
    assert_ne!(shown.leaf(), first);
    assert_eq!(std::fs::read(options.dir.join("account.json")).unwrap(), account);
}

#[tokio::test]
#[ignore = "needs pebble: run by make test"]
async fn a_domain_is_proven_over_http() {
    let pebble = Pebble::start().await;
    let challenges = HttpChallenges::default();
    serve_proofs(pebble.http_port, challenges.clone()).await;
    let options = pebble.options(Challenge::Http01(challenges));
    let shown = LiveCertificate::pending();
    let mut acme = Acme::open(options.clone(), shown.clone()).unwrap();
    acme.renew().await.unwrap();
    assert_eq!(names_in(&options.dir.join("certificate.pem")), [format!("api.{DOMAIN}"), DOMAIN.to_owned()]);
}

#[tokio::test]
#[ignore = "needs pebble: run by make test"]
async fn a_proof_that_cannot_be_seen_is_an_error_that_says_so_and_keeps_what_is_shown() {
    let pebble = Pebble::start().await;
    let shown = LiveCertificate::pending();
    let working = pebble.options(Challenge::Dns01(DnsHook::new(pebble.hook())));
    Acme::open(working, shown.clone()).unwrap().renew().await.unwrap();
    let first = shown.leaf();
    let idle = pebble.options(Challenge::Dns01(DnsHook::new("/bin/true".into())));
    let error = Acme::open(idle, shown.clone()).unwrap().renew().await.unwrap_err().to_string();
    assert!(error.contains(DOMAIN) && error.contains("TXT"), "{error}");
    assert_eq!(shown.leaf(), first);
}

#[tokio::test]
#[ignore = "needs pebble: run by make test"]
async fn an_authority_that_is_not_trusted_gets_no_account() {
    let pebble = Pebble::start().await;
    let other = tempfile::tempdir().unwrap();
    Authority::open_or_create(other.path()).unwrap();
    let options = AcmeOptions {
        root: Some(other.path().join("ca.pem")),
        ..pebble.options(Challenge::Dns01(DnsHook::new(pebble.hook())))
    };
    let error = Acme::open(options.clone(), LiveCertificate::pending()).unwrap().renew().await.unwrap_err();
    assert!(error.to_string().contains(&pebble.directory), "{error}");
    assert!(!options.dir.join("account.json").exists());
}

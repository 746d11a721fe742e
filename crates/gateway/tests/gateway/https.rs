//! The same over HTTPS, with a certificate of a private authority.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use torpor_gateway::{Front, Gateway, Transport, serve};
use torpor_tls::{Authority, CertificateFiles, LiveCertificate, names_for};

use crate::support::{Sandbox, ask, gateway, http_program, soon, to};

/// A gateway over HTTPS for `example.test`, and what its clients trust.
struct Https {
    address: SocketAddr,
    dir: tempfile::TempDir,
    files: CertificateFiles,
    shown: LiveCertificate,
}

impl Https {
    async fn start(sandbox: &Sandbox) -> Https {
        let dir = tempfile::tempdir().unwrap();
        let file = issue(&dir);
        let shown = LiveCertificate::pending();
        let files = CertificateFiles::open(&file, &file, shown.clone()).unwrap();
        let api = tower::service_fn(|request: Request<Incoming>| async move {
            let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("api {host}")))))
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let front = Front::new(Gateway::new(sandbox.clone()), api);
        let transport = Transport::Tls(shown.acceptor().unwrap());
        tokio::spawn(serve(listener, transport, front, CancellationToken::new()));
        Https { address, dir, files, shown }
    }

    /// A connection to `name` by a client that trusts the authority and offers these protocols.
    async fn connect(&self, name: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(self.dir.path().join("ca.pem")).unwrap();
        roots.add(authority).unwrap();
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn http2(&self, name: &str) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
        let stream = self.connect(name, &["h2", "http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let io = TokioIo::new(stream);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

fn issue(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let authority = Authority::open_or_create(dir.path()).unwrap();
    authority.issue(&names_for("example.test").unwrap()).unwrap().file
}

async fn text(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn get(url: String) -> Request<Empty<Bytes>> {
    Request::get(url).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn one_certificate_serves_the_api_and_every_sandbox_over_http_2() {
    let program = http_program(|request: Request<Incoming>| async move {
        let header = |name| request.headers()[name].to_str().unwrap().to_owned();
        Response::new(Full::new(Bytes::from(format!("{} {}", header("host"), header("x-forwarded-proto")))))
    })
    .await;
    let https = Https::start(&Sandbox::new()).await;
    let api =
        https.http2("api.example.test").await.send_request(get("https://api.example.test/".into())).await;
    assert_eq!(text(api.unwrap()).await, "api api.example.test");

    let host = format!("{program}-isandbox.example.test");
    let response = https.http2(&host).await.send_request(get(format!("https://{host}/"))).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    assert_eq!(text(response).await, format!("{host} https"));
}

#[tokio::test]
async fn clients_that_only_know_http_1_are_served_too() {
    let https = Https::start(&Sandbox::new()).await;
    for alpn in [&["http/1.1"][..], &[]] {
        let stream = https.connect("localhost", alpn).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/").header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(text(sender.send_request(request).await.unwrap()).await, "api ");
    }
}

#[tokio::test]
async fn names_the_certificate_does_not_have_are_refused_by_clients() {
    let https = Https::start(&Sandbox::new()).await;
    assert!(https.connect("example.org", &[]).await.is_err());
    assert!(https.connect("a.b.example.test", &[]).await.is_err());
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_and_open_ones_go_on() {
    let mut https = Https::start(&Sandbox::new()).await;
    let mut open = https.http2("api.example.test").await;
    let leaf = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let first = leaf(&https.connect("api.example.test", &[]).await.unwrap());
    issue(&https.dir);
    assert!(https.files.look().unwrap());
    let second = leaf(&https.connect("api.example.test", &[]).await.unwrap());
    assert_ne!(first, second);
    assert_eq!(second, https.shown.leaf());
    let answer = open.send_request(get("https://api.example.test/".into())).await.unwrap();
    assert_eq!(text(answer).await, "api api.example.test");
}

#[tokio::test]
async fn a_stream_over_http_2_is_cut_the_moment_the_sandbox_stops_and_the_connection_is_not() {
    let program = http_program(|_| async move {
        let first = futures::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from("first")))]);
        Response::new(StreamBody::new(first.chain(futures::stream::pending())))
    })
    .await;
    let sandbox = Sandbox::new();
    let https = Https::start(&sandbox).await;
    let host = format!("{program}-isandbox.example.test");
    let mut client = https.http2(&host).await;
    let mut body = client.send_request(get(format!("https://{host}/"))).await.unwrap().into_body();
    let frame = soon(body.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "first");
    sandbox.closed.cancel();
    assert!(soon(body.frame()).await.unwrap().is_err(), "a cut stream must not look complete");
    let after = client.send_request(get(format!("https://{host}/"))).await.unwrap();
    assert_eq!(after.status(), 502);
}

#[tokio::test]
async fn a_client_that_speaks_no_tls_harms_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let https = Https::start(&Sandbox::new()).await;
    let mut plain = TcpStream::connect(https.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Ended by an alert or a reset, never by an answer in clear.
    let _ = soon(plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
    let api =
        https.http2("api.example.test").await.send_request(get("https://api.example.test/".into())).await;
    assert_eq!(api.unwrap().status(), 200);
}

#[tokio::test]
async fn a_program_that_serves_https_itself_is_reached_whatever_certificate_it_shows() {
    let dir = tempfile::tempdir().unwrap();
    // Of an authority that nobody trusts.
    let (file, shown) = (issue(&dir), LiveCertificate::pending());
    let _files = CertificateFiles::open(&file, &file, shown.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = tower::service_fn(|request: Request<Incoming>| async move {
        let text = format!("{:?} {}", request.version(), request.uri().path());
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    let transport = Transport::Tls(shown.acceptor().unwrap());
    tokio::spawn(serve(listener, transport, program, CancellationToken::new()));

    let address = gateway(&Sandbox::with_https_ports([port])).await;
    let (status, body) = ask(address, to(port, "GET", "/hello")).await;
    assert_eq!((status, body.as_str()), (200, "HTTP/1.1 /hello"));

    let plain = gateway(&Sandbox::new()).await;
    let (status, _) = ask(plain, to(port, "GET", "/")).await;
    assert_eq!(status, 502, "without being asked to, nobody speaks TLS");
}

#[tokio::test]
async fn a_program_that_was_said_to_serve_https_and_does_not_is_said_to_be_broken() {
    let port = http_program(|_| async { Response::new(Full::new(Bytes::from("plain"))) }).await;
    let (status, body) = ask(gateway(&Sandbox::with_https_ports([port])).await, to(port, "GET", "/")).await;
    assert_eq!(status, 502, "{body}");
}

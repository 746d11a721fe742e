//! The lab's internet with a DNS server, sites and a sandbox whose egress is served.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use torpor_egress::{Authority, Outbound, OutboundOptions};
use torpor_network::{Namespace, Network};
use torpor_types::MachineId;

use crate::lab::{FORBIDDEN, Guest, Lab, OTHER_PUBLIC, PUBLIC, RESOLVER, options};

/// Names that the DNS server was asked for.
pub(crate) type Asked = Arc<Mutex<Vec<String>>>;

/// A sandbox in the lab.
pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) network: Network,
    pub(crate) namespace: Namespace,
    pub(crate) guest: Guest,
    pub(crate) outbound: Outbound,
    pub(crate) machine: MachineId,
    pub(crate) asked: Asked,
    /// Signs the certificates of sites.
    pub(crate) public_ca: PublicCa,
    authority: String,
    roots: tempfile::NamedTempFile,
}

/// The authority that the host trusts.
pub(crate) struct PublicCa(Issuer<'static, KeyPair>);

impl World {
    pub(crate) async fn new(lab: Lab, instance: &str) -> Self {
        let network = Network::start(options(instance)).await.unwrap();
        let mut namespace = network.create().await.unwrap();
        let guest = Guest::plug_in(namespace.take_tap().unwrap());
        let asked = Asked::default();
        tokio::spawn(answer_names(lab.outside.udp(RESOLVER, 53), asked.clone()));
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let roots = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(roots.path(), params.self_signed(&key).unwrap().pem()).unwrap();
        let public_ca = PublicCa(Issuer::new(params, key));
        let authority = Authority::generate().unwrap();
        let outbound = outbound(&network, &authority, roots.path());
        let machine = "m1".parse().unwrap();
        Self { lab, network, namespace, guest, outbound, machine, asked, public_ca, authority, roots }
    }

    /// Puts an egress in force, given as it is stored.
    pub(crate) async fn apply(&self, egress: &str) {
        let egress = serde_json::from_str(egress).unwrap();
        self.outbound.apply(&self.machine, &self.namespace, &egress).await.unwrap();
    }

    /// What a server that is started anew has.
    pub(crate) fn restart(&mut self) {
        self.outbound = outbound(&self.network, &self.authority, self.roots.path());
    }

    /// Speaks TLS over a connection of the guest's, which trusts the node's authority.
    pub(crate) async fn guest_tls<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        name: &'static str,
        alpn: &[&[u8]],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config)).connect(name.try_into().unwrap(), stream).await
    }
}

fn outbound(network: &Network, authority: &str, roots: &std::path::Path) -> Outbound {
    let options = OutboundOptions {
        resolver: network.resolver(),
        reach: network.reach().clone(),
        authority: Authority::from_pem(authority).unwrap(),
        extra_roots: Some(roots.to_owned()),
    };
    Outbound::new(options).unwrap()
}

impl PublicCa {
    /// Serves HTTPS as `name` at `listener`: answers with the HTTP version and the header `x-key` of the request.
    pub(crate) fn serve(&self, listener: TcpListener, name: &str) {
        let acceptor = self.acceptor(name, &[b"h2", b"http/1.1"]);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        answer_requests(stream).await;
                    }
                });
            }
        });
    }

    /// Proves to be `name`.
    pub(crate) fn acceptor(&self, name: &str, alpn: &[&[u8]]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Serves plain HTTP at `listener`, as [`PublicCa::serve`].
pub(crate) fn serve_http(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_requests(stream));
        }
    });
}

async fn answer_requests(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(async |request: Request<Incoming>| {
        let key = request.headers().get("x-key").map(|value| value.to_str().unwrap().to_owned());
        let text = format!("{:?} {}", request.version(), key.unwrap_or("-".to_owned()));
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// One request over a connection; status and body of the answer.
pub(crate) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    version: Version,
    host: &str,
) -> (u16, String) {
    let stream = TokioIo::new(stream);
    let response = if version == Version::HTTP_2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("https://{host}/")).version(version);
        sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/").header("host", host).header("x-key", "the guest's own");
        sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
    };
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn answer_names(socket: UdpSocket, asked: Asked) {
    let zone: HashMap<&str, Ipv4Addr> = [
        ("api.example.com.", PUBLIC),
        ("www.example.com.", PUBLIC),
        ("proxy.example.com.", OTHER_PUBLIC),
        ("inside.example.com.", FORBIDDEN[1]),
    ]
    .into();
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let question = query.queries[0].clone();
        let name = question.name.to_ascii().to_lowercase();
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.add_query(question.clone());
        match zone.get(name.as_str()) {
            Some(address) if question.query_type == RecordType::A => {
                answer.add_answer(Record::from_rdata(question.name.clone(), 60, RData::A(A(*address))));
            }
            Some(_) => {}
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        asked.lock().unwrap().push(name);
        socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
    }
}

//! What the tests share: a sandbox whose ports are ports of this host, programs behind them, and clients.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use torpor_gateway::{
    Access, Front, Gateway, MayResume, Refusal, Resolve, SignedFile, Transport, Upstream, UpstreamOptions,
    serve,
};
use torpor_types::SandboxId;

/// One sandbox, `isandbox`, whose ports are ports of this host's loopback; a paused one and a busy one.
#[derive(Clone)]
pub(crate) struct Sandbox {
    pub(crate) upstream: Upstream,
    pub(crate) closed: CancellationToken,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) access: Access,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self::with_https_ports([])
    }

    pub(crate) fn with_https_ports<const N: usize>(https_ports: [u16; N]) -> Self {
        let closed = CancellationToken::new();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let connect = move |port| {
            count.fetch_add(1, Ordering::SeqCst);
            TcpStream::connect(("127.0.0.1", port))
        };
        let options = UpstreamOptions { https_ports: https_ports.into(), ..UpstreamOptions::default() };
        Self {
            upstream: Upstream::new(connect, options, closed.clone()),
            closed,
            connections,
            access: Access::default(),
        }
    }
}

impl Resolve for Sandbox {
    fn access(&self, id: &SandboxId) -> Option<Access> {
        matches!(id.as_str(), "ibusy" | "ipaused" | "isandbox").then(|| self.access.clone())
    }

    async fn resolve(&self, id: &SandboxId, may_resume: MayResume) -> Result<Upstream, Refusal> {
        match id.as_str() {
            "ibusy" => Err(Refusal::Transitioning),
            "ipaused" if may_resume == MayResume::Yes => Err(Refusal::Paused),
            "ipaused" => Err(Refusal::MayNotResume),
            "isandbox" if !self.closed.is_cancelled() => Ok(self.upstream.clone()),
            _ => Err(Refusal::NotFound),
        }
    }

    fn signer(&self, file: &SignedFile) -> Option<SandboxId> {
        let token = self.access.agent_token.as_ref()?;
        file.is_by(token).then(|| "isandbox".parse().unwrap())
    }
}

/// Starts the gateway in front of a control plane that answers "api" and its path.
pub(crate) async fn gateway(sandbox: &Sandbox) -> SocketAddr {
    let api = tower::service_fn(|request: Request<Incoming>| async move {
        let text = format!("api {}", request.uri().path());
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let front = Front::new(Gateway::new(sandbox.clone()), api);
    tokio::spawn(serve(listener, Transport::Plain, front, CancellationToken::new()));
    address
}

/// Starts a program that speaks HTTP on a loopback port.
pub(crate) async fn http_program<F, Fut, B>(answer: F) -> u16
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<B>> + Send,
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = tower::service_fn(move |request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer(request).await) }
    });
    tokio::spawn(serve(listener, Transport::Plain, service, CancellationToken::new()));
    port
}

/// Starts a program that handles one raw connection at a time.
pub(crate) async fn raw_program<F, Fut>(handle: F) -> u16
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            handle(stream).await;
        }
    });
    port
}

pub(crate) async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

pub(crate) fn to(port: u16, method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path).header("host", format!("{port}-isandbox.example.org"))
}

pub(crate) async fn client<B>(address: SocketAddr) -> hyper::client::conn::http1::SendRequest<B>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<torpor_gateway::BoxError>,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn ask(address: SocketAddr, request: http::request::Builder) -> (u16, String) {
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = client(address).await.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Fails the test instead of hanging it; long enough for any busy machine.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("this should have ended long ago")
}

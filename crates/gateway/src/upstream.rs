//! One run of a sandbox, as the gateway sees it: how to connect to its ports, and a token that ends it.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::body::Body;
use crate::encrypt::encrypt;
use crate::traffic::Traffic;

/// How long a guest may take to accept a connection. Emulated guests under load take tenths of a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an unused connection is kept: less than the 5 s after which common servers (uvicorn, Node.js) close
/// theirs, so that a request seldom meets a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Unused connections kept per port.
const IDLE_PER_PORT: usize = 32;

/// Opens TCP connections to ports inside one sandbox. Any `Fn(u16) -> Future<io::Result<TcpStream>>` is one.
pub trait Connect: Send + Sync + 'static {
    /// Connects to `port` inside the sandbox. `ConnectionRefused` means that nothing listens there.
    fn connect(&self, port: u16) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;
}

/// What the gateway has to know of a run beside the way to it.
#[derive(Debug, Clone, Default)]
pub struct UpstreamOptions {
    /// Ports whose programs are spoken to in TLS.
    pub https_ports: BTreeSet<u16>,
    /// Where what passes is counted.
    pub traffic: Traffic,
}

/// The way to one sandbox, from its resume to its pause. Cheap to clone; all clones share the connections.
///
/// Keep one for as long as the machine runs and give out clones: a new one starts with an empty pool.
#[derive(Clone)]
pub struct Upstream {
    client: Client<Dial, Body>,
    closed: CancellationToken,
    traffic: Traffic,
}

#[derive(Clone)]
struct Dial {
    connect: Arc<dyn Connect>,
    https_ports: Arc<BTreeSet<u16>>,
    closed: CancellationToken,
}

/// A connection to a program, encrypted or not.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that fails, in whatever it is doing, once the sandbox has stopped.
///
/// Idle connections are being read (for their end) too, so they close as well; a socket left open would keep the
/// sandbox's network namespace alive.
struct CutStream {
    io: TokioIo<Box<dyn Duplex>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

// === impl Connect ===

impl<F, Fut> Connect for F
where
    F: Fn(u16) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    fn connect(&self, port: u16) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> {
        Box::pin(self(port))
    }
}

// === impl Upstream ===

impl Upstream {
    /// `closed` is to be cancelled the moment the sandbox stops: it cuts every connection made through this.
    pub fn new(connect: impl Connect, options: UpstreamOptions, closed: CancellationToken) -> Self {
        let UpstreamOptions { https_ports, traffic } = options;
        let https_ports = Arc::new(https_ports);
        let dial = Dial { connect: Arc::new(connect), https_ports, closed: closed.clone() };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_PORT)
            .build(dial);
        Self { client, closed, traffic }
    }

    /// What passes through it.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Whether the sandbox has stopped.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Sends a request whose URI is `http://sandbox:{port}{path}`; `None` if the sandbox stops meanwhile.
    pub(crate) async fn send(&self, request: Request<Body>) -> Option<Result<Response<Incoming>, Error>> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            answer = self.client.request(request) => (!self.is_closed() || answer.is_ok()).then_some(answer),
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

// === impl Dial ===

impl tower::Service<Uri> for Dial {
    type Response = CutStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<CutStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move {
            let port = uri.port_u16().ok_or(io::ErrorKind::InvalidInput)?;
            let connecting = async {
                let stream = dial.connect.connect(port).await?;
                stream.set_nodelay(true)?;
                let stream: Box<dyn Duplex> = match dial.https_ports.contains(&port) {
                    true => Box::new(encrypt(stream).await?),
                    false => Box::new(stream),
                };
                Ok::<_, io::Error>(stream)
            };
            let stream = tokio::select! {
                biased;
                () = dial.closed.cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
                stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting) => stream??,
            };
            Ok(CutStream { io: TokioIo::new(stream), closed: Box::pin(dial.closed.cancelled_owned()) })
        })
    }
}

// === impl CutStream ===

impl CutStream {
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.closed.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the sandbox stopped")),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connection for CutStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for CutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for CutStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

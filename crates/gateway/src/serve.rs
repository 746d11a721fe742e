//! Accepting connections: HTTP/1.1 and HTTP/2, in clear (h2c) or in TLS, upgrades, an orderly end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};
use tracing::{debug, warn};

use crate::body::BoxError;

/// How long a client may keep a connection without sending a request: longer than the 300 s for which SDKs keep
/// theirs, so that it is the client who closes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// How long open exchanges may go on after the server was asked to stop.
const GRACE: Duration = Duration::from_secs(5);

/// How long a client may take to agree on TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// What connections are made of.
#[derive(Clone)]
pub enum Transport {
    /// TCP alone: `http://`.
    Plain,
    /// TLS over TCP: `https://`.
    Tls(TlsAcceptor),
}

/// Request extension: the connection a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientConnection {
    /// Who connected.
    pub address: SocketAddr,
    /// Whether it is a TLS connection.
    pub encrypted: bool,
}

/// Serves connections until `shutdown` is cancelled, then lets exchanges under way finish for a few seconds.
pub async fn serve<S, B>(listener: TcpListener, transport: Transport, service: S, shutdown: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let graceful = GracefulShutdown::new();
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let connection =
                    connection(stream, address, transport.clone(), service.clone(), graceful.watcher());
                tokio::spawn(cut.child_token().run_until_cancelled_owned(connection));
            }
            Err(error) => {
                // Out of file descriptors, or a client that left at once: neither may end the server.
                warn!(%error, "cannot accept a connection");
                if !is_of_one_connection(&error) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        debug!("some connections were still busy and are dropped");
    }
    cut.cancel();
}

async fn connection<S, B>(
    stream: TcpStream,
    address: SocketAddr,
    transport: Transport,
    service: S,
    watcher: Watcher,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%address, %error, "cannot set TCP_NODELAY");
    }
    let client = ClientConnection { address, encrypted: matches!(transport, Transport::Tls(_)) };
    match transport {
        Transport::Plain => exchange(stream, client, service, watcher).await,
        Transport::Tls(acceptor) => {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => exchange(stream, client, service, watcher).await,
                Ok(Err(error)) => debug!(%address, %error, "no TLS connection came about"),
                Err(_) => debug!(%address, "a client took too long to agree on TLS"),
            }
        }
    }
}

/// Answers the requests of one connection.
async fn exchange<I, S, B>(stream: I, client: ClientConnection, service: S, watcher: Watcher)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(client);
        request
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = watcher.watch(served).await {
        debug!(address = %client.address, error, "a connection ended early");
    }
}

/// The error is the fate of one connection; the listener is well.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

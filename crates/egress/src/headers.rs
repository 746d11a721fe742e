//! HTTP requests passed on with headers set.
//!
//! One connection to the server for each of the client's, with the same protocol on both, ends when either ends. Requests
//! for another host than the one the connection was opened for are answered 421: clients then open another.

use std::sync::{Arc, PoisonError};

use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use torpor_types::DomainName;

use crate::error::Refusal;
use crate::opening::name_of;

/// Which HTTP both sides speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

type Body = BoxBody<Bytes, hyper::Error>;

/// Where requests go, and what is set on them.
struct Passage {
    name: DomainName,
    headers: HeaderMap,
    server: Server,
    /// Connections that have left HTTP. They end with the passage.
    upgraded: std::sync::Mutex<JoinSet<()>>,
}

enum Server {
    /// One request after the other.
    Http1(Mutex<http1::SendRequest<Incoming>>),
    Http2(http2::SendRequest<Incoming>),
}

/// Passes requests from `client` on to `server`, which is `name`, until either ends the connection.
pub(crate) async fn pass_on<C, S>(
    client: C,
    server: S,
    protocol: Protocol,
    name: DomainName,
    headers: HeaderMap,
) -> Result<(), Refusal>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match protocol {
        Protocol::Http1 => {
            let (sender, connection) = http1::Builder::new()
                .preserve_header_case(true)
                .title_case_headers(false)
                .handshake(TokioIo::new(server))
                .await?;
            let passage = Passage::new(name, headers, Server::Http1(Mutex::new(sender)));
            let answering = passage.clone();
            let service = service_fn(move |request| answering.clone().answer(request));
            let serving = hyper::server::conn::http1::Builder::new()
                .preserve_header_case(true)
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(client), service)
                .with_upgrades();
            let mut serving = std::pin::pin!(serving);
            let mut connection = std::pin::pin!(connection.with_upgrades());
            tokio::select! {
                served = &mut serving => served?,
                // The server is done: the client may finish what it is told, and no more.
                ended = &mut connection => {
                    ended?;
                    serving.as_mut().graceful_shutdown();
                    serving.await?;
                }
            }
            passage.upgraded().join_all().await;
            Ok(())
        }
        Protocol::Http2 => {
            let (sender, connection) =
                http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(server)).await?;
            let passage = Passage::new(name, headers, Server::Http2(sender));
            let service = service_fn(move |request| passage.clone().answer(request));
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(client), service);
            let mut serving = std::pin::pin!(serving);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                served = &mut serving => return Ok(served?),
                ended = &mut connection => ended?,
            }
            serving.as_mut().graceful_shutdown();
            Ok(serving.await?)
        }
    }
}

// === impl Passage ===

impl Passage {
    fn new(name: DomainName, headers: HeaderMap, server: Server) -> Arc<Self> {
        Arc::new(Self { name, headers, server, upgraded: std::sync::Mutex::default() })
    }

    /// Takes the connections that have left HTTP.
    fn upgraded(&self) -> JoinSet<()> {
        std::mem::take(&mut *self.upgraded.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        if !self.is_for_our_host(&request) {
            let why = format!(
                "This connection is for {}: requests for other hosts need one of their own\n",
                self.name
            );
            return Ok(told(StatusCode::MISDIRECTED_REQUEST, why));
        }
        match self.pass(request).await {
            Ok(response) => Ok(response),
            Err(error) => {
                tracing::info!(%error, name = %self.name, "a request with headers set got no answer");
                Ok(told(StatusCode::BAD_GATEWAY, format!("{} did not answer: {error}\n", self.name)))
            }
        }
    }

    fn is_for_our_host(&self, request: &Request<Incoming>) -> bool {
        let in_line = request.uri().authority().map(|authority| name_of(authority.as_str()));
        let mut named = request.headers().get_all(HOST).iter();
        let header = named.next().map(|value| value.to_str().ok().and_then(name_of));
        let ours = |name: &Option<DomainName>| name.as_ref() == Some(&self.name);
        named.next().is_none()
            && (in_line.is_some() || header.is_some())
            && in_line.as_ref().is_none_or(ours)
            && header.as_ref().is_none_or(ours)
    }

    async fn pass(&self, mut request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        match &self.server {
            Server::Http1(sender) => {
                let upgrade =
                    request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
                let mut sender = sender.lock().await;
                sender.ready().await?;
                let mut response = sender.send_request(request).await?;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    let theirs = hyper::upgrade::on(&mut response);
                    if let Some(ours) = upgrade {
                        self.upgraded
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .spawn(splice_upgraded(ours, theirs));
                    }
                }
                Ok(response.map(|body| body.boxed()))
            }
            Server::Http2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                Ok(sender.send_request(request).await?.map(|body| body.boxed()))
            }
        }
    }
}

/// Carries what two sides say to each other once they have left HTTP.
async fn splice_upgraded(ours: hyper::upgrade::OnUpgrade, theirs: hyper::upgrade::OnUpgrade) {
    let carried = async {
        let (ours, theirs) = tokio::try_join!(ours, theirs)?;
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        // It ends when one of them does; which error it ends with is theirs to know.
        let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
        Ok::<_, hyper::Error>(())
    };
    if let Err(error) = carried.await {
        tracing::debug!(%error, "an upgraded connection of a sandbox ended early");
    }
}

fn told(status: StatusCode, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if status == StatusCode::BAD_GATEWAY {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

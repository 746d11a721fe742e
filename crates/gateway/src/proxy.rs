//! Carrying one request to a sandbox and its answer back.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::Error;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use torpor_types::SandboxId;
use tracing::{Instrument, debug};

use crate::access::{Access, MayResume, SignedFile};
use crate::body::{Body, BoxError, boxed, empty};
use crate::headers::{prepare_request, set_upgrade, strip_hop_by_hop, upgrade_of};
use crate::page::is_browser;
use crate::refusal::{Asked, Refusal};
use crate::route::{AGENT_PORT, Target, route};
use crate::serve::ClientConnection;
use crate::traffic::{Counted, Exchange};
use crate::upstream::Upstream;

/// Endpoints of the agent by which the server prepares and watches a sandbox; a client that could call them could take
/// it over, or take its log away from the server.
const RESERVED: &[&str] =
    &["init", "freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade", "telemetry"];

/// Knows the way to sandboxes.
pub trait Resolve: Send + Sync + 'static {
    /// Who may reach a sandbox, running or paused; `None` if there is none of that id.
    fn access(&self, id: &SandboxId) -> Option<Access>;

    /// The way to a sandbox's present run, or why there is none. An implementation may wait for a moment (a resume
    /// under way), and may start a resume for a request that has shown that it [may](MayResume).
    fn resolve(
        &self,
        id: &SandboxId,
        may_resume: MayResume,
    ) -> impl Future<Output = Result<Upstream, Refusal>> + Send;

    /// The sandbox whose agent's token signed a URL that names no sandbox.
    fn signer(&self, file: &SignedFile) -> Option<SandboxId>;
}

/// Carries requests to sandboxes. Cheap to clone.
#[derive(Debug)]
pub struct Gateway<R> {
    resolver: Arc<R>,
}

// === impl Gateway ===

impl<R> Clone for Gateway<R> {
    fn clone(&self) -> Self {
        Self { resolver: Arc::clone(&self.resolver) }
    }
}

impl<R: Resolve> Gateway<R> {
    /// A gateway to the sandboxes `resolver` knows.
    pub fn new(resolver: R) -> Self {
        Self { resolver: Arc::new(resolver) }
    }

    /// Carries a request to its sandbox, or hands it back if it is for the control plane.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Response<Body>, Request<B>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let host = host_of(&request);
        let as_page = is_browser(request.headers());
        let (id, port) = match route(host.as_deref(), request.headers(), request.uri().path()) {
            Target::Sandbox { id, port } => (id, port),
            Target::Malformed(reason) => {
                let asked = Asked { as_page, ..Asked::default() };
                return Ok(Refusal::Malformed(reason).into_response(&asked));
            }
            // The API has no files: a signed URL is for the sandbox that can have signed it.
            Target::Api => match SignedFile::of(request.method(), request.uri()) {
                None => return Err(request),
                Some(file) => match self.resolver.signer(&file) {
                    Some(id) => (id, AGENT_PORT),
                    None => {
                        let refusal = Refusal::Unauthorized("invalid signature".to_owned());
                        return Ok(refusal.into_response(&Asked { as_page, ..Asked::default() }));
                    }
                },
            },
        };
        let asked = Asked { id: Some(&id), port: Some(port), as_page };
        let span = tracing::debug_span!("proxy", sandbox = %id, port, path = request.uri().path());
        let answer = self.carry(&id, port, host, request.map(boxed)).instrument(span).await;
        Ok(answer.unwrap_or_else(|refusal| {
            debug!(sandbox = %id, port, %refusal, "refused");
            refusal.into_response(&asked)
        }))
    }

    async fn carry(
        &self,
        id: &SandboxId,
        port: u16,
        host: Option<String>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        if port == AGENT_PORT && is_reserved(request.uri().path()) {
            return Err(Refusal::Reserved);
        }
        if request.method() == Method::CONNECT {
            return Err(Refusal::Malformed("sandboxes are no CONNECT proxies".to_owned()));
        }
        let access = self.resolver.access(id).ok_or(Refusal::NotFound)?;
        let may_resume = access.check(port, &request)?;
        let upstream = self.resolver.resolve(id, may_resume).await?;
        let exchange = upstream.traffic().begin();
        let client = request.extensions().get::<ClientConnection>().copied();
        let wants_upgrade = upgrade_of(request.headers()).is_some();
        let client_side = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
        prepare_request(request.headers_mut(), host.as_deref(), access.masked_host(port).as_deref(), client);
        *request.uri_mut() = uri_in_sandbox(port, request.uri());
        *request.version_mut() = Version::HTTP_11;
        request.extensions_mut().clear();

        let mut response = send(&upstream, port, request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client_side) = client_side else {
                return Err(Refusal::Broken("it switched protocols without being asked to".to_owned()));
            };
            exchange.upgraded();
            return Ok(tunnel(client_side, response, exchange));
        }
        strip_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(|body| boxed(Counted::new(body, exchange))))
    }
}

/// Sends the request. One that has no body and changes nothing by being repeated is sent a second time if the
/// connection ended without an answer: the server inside may have closed it just as the request was written.
/// (Requests that a dead pooled connection never sent are repeated by the client library, whatever they are.)
async fn send(upstream: &Upstream, port: u16, request: Request<Body>) -> Result<Response<Incoming>, Refusal> {
    let spare = spare_copy(&request);
    match (upstream.send(request).await.ok_or(Refusal::NotFound)?, spare) {
        (Ok(response), _) => Ok(response),
        (Err(error), Some(spare)) if ended_without_answer(&error) => {
            debug!(%error, "asking once more");
            upstream.send(spare).await.ok_or(Refusal::NotFound)?.map_err(|error| refusal_of(&error, port))
        }
        (Err(error), _) => Err(refusal_of(&error, port)),
    }
}

fn spare_copy(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.method().is_idempotent() || !http_body::Body::is_end_stream(request.body()) {
        return None;
    }
    let mut spare = Request::new(empty());
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.headers_mut() = request.headers().clone();
    Some(spare)
}

/// The error and what caused it, down to the root.
fn causes(error: &Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |&error| error.source())
}

fn ended_without_answer(error: &Error) -> bool {
    !error.is_connect()
        && causes(error).any(|cause| {
            let hyper = cause.downcast_ref::<hyper::Error>().is_some_and(|e| e.is_incomplete_message());
            let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            hyper || matches!(io, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
        })
}

fn refusal_of(error: &Error, port: u16) -> Refusal {
    let io = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) if error.is_connect() => Refusal::PortClosed,
        Some(io::ErrorKind::TimedOut) if error.is_connect() => {
            Refusal::Broken(format!("port {port} did not accept a connection in time"))
        }
        _ if error.is_connect() => {
            let reason = io.map_or_else(|| error.to_string(), ToString::to_string);
            Refusal::Broken(format!("port {port} cannot be reached: {reason}"))
        }
        _ if ended_without_answer(error) => {
            Refusal::Broken(format!("the program on port {port} closed the connection without an answer"))
        }
        _ => {
            let reason = causes(error).last().map_or_else(|| error.to_string(), ToString::to_string);
            Refusal::Broken(format!("the exchange with port {port} broke off: {reason}"))
        }
    }
}

/// Passes "101 Switching Protocols" on and, once both sides have switched, bytes both ways until either ends.
fn tunnel(client_side: OnUpgrade, mut response: Response<Incoming>, exchange: Exchange) -> Response<Body> {
    let sandbox_side = hyper::upgrade::on(&mut response);
    tokio::spawn(
        async move {
            let _exchange = exchange;
            let (client, sandbox) = match tokio::try_join!(client_side, sandbox_side) {
                Ok(both) => both,
                Err(error) => return debug!(%error, "an upgrade was not completed"),
            };
            let (mut client, mut sandbox) = (TokioIo::new(client), TokioIo::new(sandbox));
            match tokio::io::copy_bidirectional(&mut client, &mut sandbox).await {
                Ok((up, down)) => debug!(up, down, "tunnel closed"),
                Err(error) => debug!(%error, "tunnel cut"),
            }
        }
        .in_current_span(),
    );
    let protocol = upgrade_of(response.headers());
    strip_hop_by_hop(response.headers_mut());
    if let Some(protocol) = protocol {
        set_upgrade(response.headers_mut(), protocol);
    }
    response.map(|_| empty())
}

/// The authority of HTTP/2 and absolute-form requests, else `Host`.
fn host_of<B>(request: &Request<B>) -> Option<String> {
    let authority = request.uri().authority().map(Authority::as_str);
    let host = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
    authority.or(host).map(str::to_owned)
}

fn uri_in_sandbox(port: u16, asked: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Authority::try_from(format!("sandbox:{port}")).ok();
    parts.path_and_query = asked.path_and_query().cloned().or(Some(PathAndQuery::from_static("/")));
    Uri::from_parts(parts).unwrap_or_default()
}

/// Compares the path as the most generous of servers would read it: decoded, without empty and `.` segments.
fn is_reserved(path: &str) -> bool {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    matches!(segments.as_slice(), [only] if RESERVED.contains(only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_of_a_reserved_endpoint_gets_through() {
        for path in [
            "/init",
            "//init",
            "/init/",
            "/%69nit",
            "/./init",
            "/x/../init",
            "/freeze",
            "/upgrade",
            "/telemetry",
        ] {
            assert!(is_reserved(path), "{path}");
        }
        for path in ["/", "/health", "/files", "/initial", "/init/x", "/process.Process/Start"] {
            assert!(!is_reserved(path), "{path}");
        }
    }

    #[test]
    fn path_and_query_reach_the_sandbox_as_they_were_sent() {
        let asked: Uri = "http://8000-iabc.example.org/a%20b/?c=%2F&d".parse().unwrap();
        assert_eq!(uri_in_sandbox(8000, &asked), "http://sandbox:8000/a%20b/?c=%2F&d");
        assert_eq!(uri_in_sandbox(80, &"/".parse().unwrap()), "http://sandbox:80/");
    }
}

//! The agent's HTTP server: every endpoint on one port, over HTTP/1.1 and HTTP/2 without TLS.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
    serve::ListenerExt,
};
use connectrpc::{ConnectRpcService, Limits};
use http::{HeaderMap, StatusCode, header::USER_AGENT};
use tokio::net::TcpListener;
use torpor_envd_api::{
    LEGACY_USER_AGENT,
    http::{DEFAULT_KEEPALIVE_SECONDS, KEEPALIVE_HEADER},
};
use tower_http::cors::{AllowHeaders, AllowMethods, Any, CorsLayer};

use crate::{auth, files, freeze, init, metrics, process, state::AgentState, telemetry};

/// The shared state, as handlers take it.
pub type Shared = Arc<AgentState>;

/// The largest RPC message; input for processes comes in such. A message is in memory several times while it is read,
/// which even the smallest sandbox has room for.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, router: Router) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // Answers are small and latency is what clients see.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        if let Err(error) = keep_alive(stream) {
            tracing::debug!(%error, "TCP keepalive");
        }
    });
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}

/// Every endpoint.
pub fn router(state: Shared, processes: Arc<process::Processes>) -> Router {
    let connect = connectrpc::Router::new();
    let connect = process::register(connect, state.clone(), processes.clone());
    let connect = files::register(connect, state.clone());
    let limits = Limits::unlimited()
        .with_max_message_size(MAX_MESSAGE_BYTES)
        .with_max_request_body_size(MAX_MESSAGE_BYTES);
    let connect = ConnectRpcService::new(connect).with_limits(limits);

    Router::new()
        .route("/health", get(|| async { StatusCode::NO_CONTENT }))
        .route("/envs", get(envs))
        .route("/metrics", get(metrics::get))
        .route(torpor_envd_api::telemetry::PATH, get(telemetry::get))
        .with_state(state.clone())
        .merge(
            Router::new()
                .route("/init", post(init::post))
                .with_state(init::Init::new(state.clone(), processes)),
        )
        .route("/freeze", post(freeze::freeze_handler).with_state(state.clone()))
        .route("/unfreeze", post(freeze::unfreeze_handler).with_state(state.clone()))
        .merge(files::http_routes(state.clone()))
        .fallback_service(connect)
        .layer(middleware::from_fn(timeouts))
        .layer(middleware::from_fn_with_state(state, auth::require_token))
        .layer(cors())
}

/// Whether the client is one of the first Python SDKs, see [`LEGACY_USER_AGENT`].
pub fn is_legacy(headers: &HeaderMap) -> bool {
    headers.get(USER_AGENT).is_some_and(|agent| agent == LEGACY_USER_AGENT)
}

/// How long a stream may be silent before the client wants a keepalive event.
pub fn keepalive_interval(headers: &HeaderMap) -> Duration {
    let seconds = headers
        .get(KEEPALIVE_HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(DEFAULT_KEEPALIVE_SECONDS);
    Duration::from_secs(seconds)
}

async fn envs(State(state): State<Shared>) -> Json<std::collections::BTreeMap<String, String>> {
    Json(state.settings().global_envs())
}

/// In the envd protocol a timeout of zero is none; in Connect's it would have passed already. Every other one is cut a
/// little, see [`answer_within`].
async fn timeouts(mut request: Request, next: Next) -> Response {
    const TIMEOUT: &str = "connect-timeout-ms";
    let asked = request.headers().get(TIMEOUT).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match asked {
        Some(0) => drop(request.headers_mut().remove(TIMEOUT)),
        Some(milliseconds) => {
            request.headers_mut().insert(TIMEOUT, answer_within(milliseconds).into());
        }
        // Absent, or not a number: Connect's own code has the word for that.
        None => {}
    }
    next.run(request).await
}

/// After how many milliseconds a client that waits for `milliseconds` has to be told that its time is over.
///
/// The client's own clock may run for the same time and begin no later than when it hears from us; in Python SDKs up to
/// 2.29 it does. Whoever rings first decides what the caller sees: "the command took longer than its timeout", or a
/// network error that no program expects. So the agent rings first, by a tenth of the time, half a second at most.
fn answer_within(milliseconds: u64) -> u64 {
    const LONGEST_HEAD_START_MS: u64 = 500;
    milliseconds - (milliseconds / 10).min(LONGEST_HEAD_START_MS)
}

/// Browsers may use everything from anywhere; the access token protects, not the origin.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Any)
        .max_age(Duration::from_secs(7200))
}

/// Lets the kernel find out about clients that vanished without a word, as they do when the machine is continued
/// from a snapshot.
fn keep_alive(stream: &tokio::net::TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_hears_of_its_deadline_before_its_own_clock_rings() {
        assert_eq!(answer_within(2_000), 1_800);
        assert_eq!(answer_within(60_000), 59_500);
        assert_eq!(answer_within(u64::MAX), u64::MAX - 500);
        // Too short for a head start, but never so short that it has passed already.
        assert_eq!(answer_within(1), 1);
    }
}

//! The REST API: translates the wire protocol to and from [`lifecycle`](crate::lifecycle).
//!
//! Everything that is answered here is JSON, failures included (see `error`). What the published SDKs call but this
//! server does not have yet is answered 404, which says so.

mod egress;
mod error;
mod extract;
mod idempotency;
mod list;
mod network;
mod resolve;
mod sandboxes;
mod snapshots;
mod state;
mod teams;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, Method, Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use tracing::Span;

pub use error::ApiError;
use extract::Team;
use idempotency::Repeats;
#[doc(hidden)]
pub use list::metadata_filter;
pub use resolve::Routes;
pub use state::ApiOptions;
use state::{ApiState, Lifecycle};
use wire::Template;

use crate::lifecycle::Sandboxes;
use crate::registry::Registry;

/// Header that names a request in the answer and in the server's log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The control plane's routes.
pub fn router(sandboxes: Sandboxes, registry: Registry, options: ApiOptions) -> Router {
    routes(Arc::new(sandboxes), registry, options)
}

fn routes(sandboxes: Arc<dyn Lifecycle>, registry: Registry, options: ApiOptions) -> Router {
    let state = Arc::new(ApiState { sandboxes, registry, options, repeats: Repeats::default() });
    let log = TraceLayer::new_for_http().make_span_with(request_span).on_request(()).on_response(log_answer);
    let middleware = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, NewRequestId))
        .layer(log)
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "The server made a mistake; its log says more")
                .with_code("internal_server_error")
                .into_response()
        }));
    Router::new()
        .route("/health", get(async || "Health check successful"))
        .route("/sandboxes", get(sandboxes::list_v1).post(sandboxes::create_v1))
        .route("/v2/sandboxes", get(sandboxes::list_v2).post(sandboxes::create_v2))
        .route("/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::kill))
        .route("/sandboxes/{id}/logs", get(sandboxes::logs))
        .route("/sandboxes/{id}/pause", post(sandboxes::pause))
        .route("/sandboxes/{id}/resume", post(sandboxes::resume))
        .route("/sandboxes/{id}/connect", post(sandboxes::connect_v1))
        .route("/v2/sandboxes/{id}/connect", post(sandboxes::connect_v2))
        .route("/sandboxes/{id}/network", put(sandboxes::set_network))
        .route("/sandboxes/{id}/timeout", post(sandboxes::set_timeout))
        .route("/sandboxes/{id}/refreshes", post(sandboxes::refresh))
        .route("/sandboxes/{id}/snapshots", post(snapshots::take))
        .route("/sandboxes/{id}/fork", post(snapshots::fork))
        .route("/snapshots", get(snapshots::list))
        .route("/templates/{id}", axum::routing::delete(snapshots::delete))
        .route("/teams", get(teams::list))
        .route("/templates", get(templates))
        .route("/v2/templates", get(templates))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware)
        .with_state(state)
}

async fn templates(State(state): State<Arc<ApiState>>, _: Team) -> Result<Json<Vec<Template>>, ApiError> {
    Ok(Json(state.registry.templates().await?.into_iter().map(Template::from).collect()))
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let is_agents = path.contains('.') || matches!(path, "/files" | "/metrics" | "/envs" | "/init");
    let hint = if is_agents {
        ". Inside a sandbox there may be one: address it by the headers E2b-Sandbox-Id and E2b-Sandbox-Port, or by \
         the host name {port}-{sandbox id}.{domain}"
    } else {
        ""
    };
    ApiError::new(StatusCode::NOT_FOUND, format!("There is no {method} {path} here{hint}"))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not know the method {method}", uri.path()))
}

/// Twelve random hex digits: enough to find a request in a log.
#[derive(Debug, Clone, Copy)]
struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let id = hex::encode(rand::random::<[u8; 6]>());
        id.parse().ok().map(RequestId::new)
    }
}

fn request_span<B>(request: &Request<B>) -> Span {
    let id = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or("-");
    tracing::info_span!("api", id, method = %request.method(), path = request.uri().path())
}

fn log_answer<B>(response: &Response<B>, latency: Duration, _: &Span) {
    let status = response.status().as_u16();
    tracing::info!(status, ms = latency.as_secs_f64() * 1e3, "answered");
}

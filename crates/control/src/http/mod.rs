//! The REST API: translates the wire protocol to and from [`lifecycle`](crate::lifecycle).
//!
//! Everything that is answered here is JSON, failures included (see `error`). What the published SDKs call but this
//! server does not have yet is answered 404, which says so.

mod egress;
mod error;
mod extract;
mod gc;
mod idempotency;
mod list;
mod network;
mod openapi;
mod resolve;
mod sandboxes;
mod snapshots;
mod state;
mod teams;
mod telemetry;
mod templates;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, Method, Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use tracing::Span;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use error::ApiError;
use idempotency::Repeats;
#[doc(hidden)]
pub use list::metadata_filter;
pub use resolve::Routes;
pub use state::ApiOptions;
use state::{ApiState, Lifecycle};

use crate::lifecycle::Sandboxes;
use crate::registry::Registry;

/// Header that names a request in the answer and in the server's log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The control plane's routes.
pub fn router(sandboxes: Sandboxes, registry: Registry, options: ApiOptions) -> Router {
    routes(Arc::new(sandboxes), registry, options)
}

fn routes(sandboxes: Arc<dyn Lifecycle>, registry: Registry, options: ApiOptions) -> Router {
    let (router, document) = described().split_for_parts();
    let document = openapi::to_text(&document);
    let state = Arc::new(ApiState { sandboxes, registry, options, repeats: Repeats::default(), document });
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
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware)
        .with_state(state)
}

/// Every route, with its description. Routes are added here and nowhere else, so that the document has them all.
fn described() -> OpenApiRouter<Arc<ApiState>> {
    openapi::router()
        .routes(routes!(health))
        .routes(routes!(openapi::document))
        .routes(routes!(gc::plan, gc::collect))
        .routes(routes!(sandboxes::list_v1, sandboxes::create_v1))
        .routes(routes!(sandboxes::list_v2, sandboxes::create_v2))
        .routes(routes!(telemetry::newest_metrics))
        .routes(routes!(sandboxes::get, sandboxes::kill))
        .routes(routes!(telemetry::metrics))
        .routes(routes!(telemetry::logs_v1))
        .routes(routes!(telemetry::logs_v2))
        .routes(routes!(telemetry::console))
        .routes(routes!(sandboxes::pause))
        .routes(routes!(sandboxes::resume))
        .routes(routes!(sandboxes::connect_v1))
        .routes(routes!(sandboxes::connect_v2))
        .routes(routes!(sandboxes::set_network))
        .routes(routes!(sandboxes::set_timeout))
        .routes(routes!(sandboxes::refresh))
        .routes(routes!(snapshots::take))
        .routes(routes!(snapshots::fork))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::delete))
        .routes(routes!(teams::list))
        .routes(routes!(templates::list_v1))
        .routes(routes!(templates::list_v2))
}

/// The OpenAPI document of this API.
pub fn openapi_document() -> String {
    openapi::to_text(&described().into_openapi())
}

/// Whether the server answers
#[utoipa::path(
    get, path = "/health", tag = "server", security(()),
    responses((status = 200, description = "It does", content_type = "text/plain", body = String))
)]
async fn health() -> &'static str {
    "Health check successful"
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

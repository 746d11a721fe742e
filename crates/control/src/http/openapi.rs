//! The OpenAPI document of this API, made from the handlers and the types they read and write.
//!
//! A route gets into the router only together with its description (`routes!`), so that none can be missing. The same
//! document is served at `/openapi.json` and printed by `torpor openapi`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{
    Content, OpenApi as Document, Ref, RefOr, Response as DescribedResponse, ResponseBuilder,
};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::error::Body;
use super::state::ApiState;

/// Name of the security scheme.
const KEY: &str = "ApiKey";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Torpor",
        description = "Sandboxes for AI agents that can be paused and resumed with everything in them. This is the \
                       control plane of the E2B protocol as this server speaks it. What happens inside a sandbox \
                       (commands, files) is not described here: it goes through the gateway to the sandbox's agent.",
    ),
    components(schemas(Body)),
    security(("ApiKey" = [])),
    modifiers(&KeyHeader),
)]
struct Base;

/// Adds the security scheme.
struct KeyHeader;

/// The sandbox a request is about.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "only its description is used")]
pub(super) struct IdParam {
    /// Id of the sandbox, or `id-clientID` as old SDKs join them
    #[param(pattern = "^[0-9a-z]{1,64}(-[0-9A-Za-z]{1,64})?$", example = "i0123456789abcdefghi")]
    id: String,
}

/// Declares sets of refusals for the descriptions of handlers.
macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident: $($status:literal)+;)+) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<DescribedResponse>> {
                [$($status),+].into_iter().map(refusal).collect()
            }
        }
    )+};
}

refusals! {
    /// Of a request that is only looked at.
    Refused: 401 500;
    /// Of what only the operator may.
    RefusedOperator: 401 403 500;
    /// Of a request with parameters that may be wrong.
    RefusedQuery: 400 401 500;
    /// Of a request about one sandbox, without a body.
    RefusedOne: 400 401 404 500;
    /// Of a change of one sandbox.
    RefusedChange: 400 401 404 409 413 500 503;
    /// Of a create.
    RefusedCreate: 400 401 404 409 413 422 429 500 503 507;
    /// Of whatever makes a paused sandbox run.
    RefusedStart: 400 401 404 409 413 422 429 500 503 507;
    /// Of what copies a sandbox, which needs room.
    RefusedCopy: 400 401 404 409 413 500 503 507;
}

fn refusal(status: u16) -> (String, RefOr<DescribedResponse>) {
    let description = match status {
        400 => "The request cannot be right; the message says what is wrong with it",
        401 => "There is no API key, or it opens nothing here",
        403 => "The API key is a team's, and this needs the node's own",
        404 => {
            "There is no such sandbox or template, or it is another team's, or its state has no such thing"
        }
        409 => "The sandbox is in another state than this needs",
        413 => "The body is too large",
        422 => "What was saved does not fit this host; the message says what differs, and the way out",
        429 => "The team has as many sandboxes running as it may",
        503 => "The server is stopping",
        507 => "The vault has not enough room",
        _ => "The server failed; its log says more",
    };
    let content = Content::new(Some(Ref::from_schema_name("Error")));
    let response = ResponseBuilder::new().description(description).content("application/json", content);
    (status.to_string(), RefOr::T(response.build()))
}

impl Modify for KeyHeader {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        document.components.get_or_insert_default().add_security_scheme(KEY, scheme);
        document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    }
}

/// A router to which described routes can be added.
pub(super) fn router() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::with_openapi(Base::openapi())
}

/// The document as text.
pub(super) fn to_text(document: &Document) -> String {
    // It has strings, numbers and lists only, which JSON can hold.
    serde_json::to_string_pretty(document).unwrap_or_default()
}

/// This document
#[utoipa::path(
    get, path = "/openapi.json", tag = "server", security(()),
    responses((status = 200, description = "An OpenAPI document", content_type = "application/json", body = serde_json::Value))
)]
pub(super) async fn document(State(state): State<Arc<ApiState>>) -> Response {
    ([(CONTENT_TYPE, "application/json")], state.document.clone()).into_response()
}

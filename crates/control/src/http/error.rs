//! How every failure of the API is answered: `{"code", "message"[, "error_code"]}`, whatever went wrong.
//!
//! `code` repeats the HTTP status, because the JavaScript SDK decides by it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::lifecycle::LifecycleError;
use crate::registry::RegistryError;

/// A request that was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    error_code: Option<&'static str>,
}

/// What is answered in its place.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct Body {
    /// The HTTP status, repeated: the JavaScript SDK decides by it
    #[schema(minimum = 400, maximum = 599)]
    code: u16,
    /// What happened, why, and what to do
    message: String,
    /// A name of what happened, for programs
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
}

// === impl ApiError ===

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), error_code: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The answer's body, also where it stands inside another.
    pub(super) fn into_body(self) -> Body {
        Body { code: self.status.as_u16(), message: self.message, error_code: self.error_code }
    }

    pub(super) fn with_code(mut self, error_code: &'static str) -> Self {
        self.error_code = Some(error_code);
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!(status = self.status.as_u16(), message = %self.message, "request failed");
        } else {
            tracing::debug!(status = self.status.as_u16(), message = %self.message, "request refused");
        }
        (self.status, Json(self.into_body())).into_response()
    }
}

impl From<LifecycleError> for ApiError {
    fn from(error: LifecycleError) -> Self {
        use LifecycleError as E;
        let (status, error_code) = match &error {
            // A paused sandbox has no deadline, so that "set its timeout" finds nothing: clients expect 404.
            E::NotFound(_) | E::Paused(_) | E::TemplateNotFound { .. } => (StatusCode::NOT_FOUND, None),
            E::AlreadyPaused(_) | E::AlreadyRunning(_) | E::NotRunning(_) | E::InTransition(_) => {
                (StatusCode::CONFLICT, None)
            }
            E::InvalidName { .. } | E::SnapshotInUse { .. } => (StatusCode::BAD_REQUEST, None),
            E::TimeoutNotPositive
            | E::TimeoutTooLong { .. }
            | E::MaxLengthExceeded
            | E::ProxyOutOfReach(_) => (StatusCode::BAD_REQUEST, None),
            E::TooManyRunning { .. } => (StatusCode::TOO_MANY_REQUESTS, None),
            // Not 503: SDKs would repeat the request, and room does not appear by waiting.
            E::NoRoom { .. } => (StatusCode::INSUFFICIENT_STORAGE, Some("sandbox_capacity_unavailable")),
            // Not 409, after which SDKs take it that it runs, nor 5xx: another attempt would end the same.
            E::Unfit { .. } => (StatusCode::UNPROCESSABLE_ENTITY, Some("snapshot_does_not_fit")),
            E::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, None),
            E::Failed { .. } | E::Registry(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, Some("internal_server_error"))
            }
        };
        Self { status, message: error.to_string(), error_code }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        LifecycleError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use torpor_vault::Limit;

    use super::*;

    #[test]
    fn every_failure_has_its_status_and_says_what_to_do() {
        let id = || "iabc".parse().unwrap();
        let errors = [
            LifecycleError::NotFound(id()),
            LifecycleError::Paused(id()),
            LifecycleError::AlreadyPaused(id()),
            LifecycleError::AlreadyRunning(id()),
            LifecycleError::InTransition(id()),
            LifecycleError::NotRunning(id()),
            LifecycleError::InvalidName { name: "A".into(), why: "a name has …".into() },
            LifecycleError::SnapshotInUse { asked: "default/a:default".into(), sandboxes: vec![id()] },
            LifecycleError::TemplateNotFound { asked: "bse".into(), known: vec!["base".into()] },
            LifecycleError::TemplateNotFound { asked: "base".into(), known: vec![] },
            LifecycleError::TimeoutNotPositive,
            LifecycleError::ProxyOutOfReach(std::net::Ipv4Addr::new(10, 0, 0, 1)),
            LifecycleError::TimeoutTooLong { max_hours: 24 },
            LifecycleError::MaxLengthExceeded,
            LifecycleError::TooManyRunning { max_running: 20 },
            LifecycleError::NoRoom { missing_bytes: 1_048_576, limit: Limit::Reserve(1) },
            LifecycleError::NoRoom { missing_bytes: 1_048_576, limit: Limit::Budget(1) },
            LifecycleError::Unfit { what: "The sandbox could not be started", why: "its QEMU …".into() },
            LifecycleError::Failed { what: "the pause failed", why: "no reply".into() },
            LifecycleError::ShuttingDown,
        ];
        let lines = errors.map(|error| serde_json::to_string(&ApiError::from(error).into_body()).unwrap());
        insta::assert_snapshot!(lines.join("\n"));
    }
}

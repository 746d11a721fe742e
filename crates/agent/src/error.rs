//! Errors of the plain HTTP endpoints: a status and a message, as JSON.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use torpor_envd_api::http::ErrorBody;

/// An HTTP error whose body is [`ErrorBody`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HttpError {
    /// The HTTP status, repeated in the body.
    pub status: StatusCode,
    /// What happened, why, and what to do.
    pub message: String,
}

// === impl HttpError ===

impl HttpError {
    /// An error with that status and message.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request cannot be right.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 401: the request lacks what would permit it.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// 404: what the request is about does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 500: the agent could not do what it should.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { code: self.status.as_u16(), message: self.message })).into_response()
    }
}

//! The body type that leaves the gateway, whatever came in.

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

/// Any error, boxed: bodies come from several libraries.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streaming body. It is passed on frame by frame, never collected.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Boxes a body; its size hint, by which hyper chooses the framing, stays what it was.
pub(crate) fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// A body that is complete already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub(crate) fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

//! What reads bytes from strangers, as functions of those bytes: the *targets* of fuzzing.
//!
//! A target takes any bytes, hands them to the real code, and panics if something does not hold that has to hold
//! whatever they are: that an answer is well-formed, that what was written is read again, that a reader written
//! twice, once here in the plainest way, comes to the same result. `fuzz/` runs them with libFuzzer, which looks for
//! bytes that make them panic; the test `corpus` of this crate runs them over what it has found so far, so that
//! `cargo test` needs no fuzzer.
//!
//! | target | what it reads |
//! |---|---|
//! | [`connect`] | a Connect RPC request in the agent: envelopes, both codecs, gzip |
//! | [`form`] | a multipart upload in the agent |
//! | [`route`] | host and headers in the gateway: which sandbox, which port |
//! | [`signature`] | the query of a signed file URL in the agent |
//! | [`metadata`] | the metadata filter of a list of sandboxes in the control plane |

// Tests in all but name: what cannot be is told by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod connect;
mod form;
mod metadata;
mod route;
mod signature;

use std::future::Future;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;

pub use connect::connect;
pub use form::form;
pub use metadata::metadata;
pub use route::route;
pub use signature::signature;

/// A target and what it is called.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] = [
    ("connect", connect),
    ("form", form),
    ("metadata", metadata),
    ("route", route),
    ("signature", signature),
];

/// A request's body that arrives in pieces of `piece` bytes; all at once if that is 0.
fn in_pieces(bytes: &[u8], piece: usize) -> Body {
    let piece = if piece == 0 { bytes.len().max(1) } else { piece };
    let pieces: Vec<_> =
        bytes.chunks(piece).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
    Body::from_stream(stream::iter(pieces))
}

/// Waits for a future on a runtime of this thread's own.
fn wait_for<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

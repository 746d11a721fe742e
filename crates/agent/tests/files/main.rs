//! The agent's file service, driven over the wire: a real agent process, real requests, real files.

// Helpers of tests fail tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod http;
mod metadata;
mod rpc;
mod space;
mod support;
mod watch;
mod wire;

//! The agent's processes and its own endpoints, driven over the wire: a real agent process, the generated client.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod documented;
mod http;
mod input;
mod lifetime;
mod output;
mod support;
mod telemetry;
mod terminal;
mod whoami;
mod wire;

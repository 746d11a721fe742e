//! The gateway between real TCP servers (standing for programs in a sandbox) and real clients.

// The lint knows the bodies of tests, not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod https;
mod proxy;
mod support;

//! The control plane: the REST API that clients speak, who may speak it, and the life of every sandbox.
//!
//! - [`registry`] is the database: teams, keys, templates, sandboxes. It records every intent before it is acted on.
//! - [`lifecycle`] owns the sandboxes: one actor each, which alone changes its state.
//! - [`keys`] makes and checks API keys.
//! - [`retention`] says what was kept long enough.
//! - [`teams`] makes and limits teams.
//! - [`telemetry`] keeps what sandboxes tell: logs and metrics.
//! - [`timings`] tells where the time of a request went.
//! - [`http`] translates the wire protocol to and from `lifecycle`.

pub mod http;
pub mod keys;
pub mod lifecycle;
pub mod registry;
pub mod retention;
pub mod teams;
pub mod telemetry;
pub mod timings;

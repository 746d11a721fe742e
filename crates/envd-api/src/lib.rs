//! The envd wire types: what a client, the server and the agent inside a sandbox say to each other.
//!
//! Two protocols share the agent's one port:
//!
//! * Connect RPC (HTTP/1.1 or HTTP/2, JSON or binary) for the services [`process`] and [`filesystem`]. Messages,
//!   server traits and clients are generated at build time from the definitions in `proto/`, whose names and
//!   field numbers are those that the published E2B clients were built with.
//! * Plain HTTP for everything else: see [`http`], and [`telemetry`] for what the host reads.
//!
//! The crate has no opinion on transport. Feature `client` adds connectrpc's HTTP transports for the generated
//! clients.
//!
//! ```
//! use torpor_envd_api::process::{ProcessConfig, StartRequest};
//!
//! let request = StartRequest {
//!     process: ProcessConfig { cmd: "true".into(), ..Default::default() }.into(),
//!     stdin: Some(false),
//!     ..Default::default()
//! };
//! assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"process":{"cmd":"true"},"stdin":false}"#);
//! ```

pub mod http;
pub mod signature;
pub mod telemetry;

pub use buffa;
pub use buffa_types;
pub use connectrpc;

/// The envd version the agent stands for. Published SDKs switch features on by it; at this version all those they
/// know of are on.
pub const ENVD_VERSION: &str = "0.6.13";

/// The TCP port the agent listens on.
pub const ENVD_PORT: u16 = 49983;

/// The `User-Agent` of the first Python SDKs, which reject JSON fields they do not know. Answers to it carry only
/// the fields those SDKs know: an entry its `name`, `type` and `path`, a filesystem event its `name` and `type`.
pub const LEGACY_USER_AGENT: &str = "connect-python";

#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
mod generated {
    connectrpc::include_generated!("envd.rs");
}

pub use generated::{filesystem, process};

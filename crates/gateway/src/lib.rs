//! The gateway: the reverse proxy from clients to ports in sandboxes.
//!
//! One listening port serves two worlds. The *control plane* is the REST API; *sandbox traffic* is everything meant
//! for a port inside a sandbox, be it the agent (port 49983) or a program of the user. [`route`](route()) tells them
//! apart, by host name (`{port}-{id}.{domain}`) or by the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port`, and is a
//! pure function. [`Gateway`] carries sandbox traffic: it asks a [`Resolve`] who may reach the sandbox ([`Access`]) and
//! then for the sandbox's [`Upstream`], which may mean to resume it, and streams both ways without buffering, upgrades
//! (WebSocket) included.
//!
//! An upstream belongs to one *run* of a sandbox, from resume to pause. It holds the keep-alive connections to every
//! port of that sandbox and a token that is cancelled the moment the sandbox stops: every connection is then cut,
//! in the middle of a response if need be, so that no client waits for a machine that stands still.
//!
//! Why an own proxy on hyper's client instead of a finished one: connections must be made inside a sandbox's network
//! namespace and be cut by a token. `hyper-reverse-proxy` stands on hyper 0.14 and offers neither;
//! `axum-reverse-proxy` re-frames WebSocket messages and takes a URL as its target; `pingora` brings a server and
//! thread model of its own. What is hard (HTTP framing, connection pooling, retrying a request that a stale pooled
//! connection never sent) is hyper-util's client; what is here is routing, headers and error bodies.

mod access;
mod body;
mod encrypt;
mod front;
mod headers;
mod page;
mod proxy;
mod refusal;
mod route;
mod serve;
mod traffic;
mod upstream;

pub use access::{Access, MayResume, SignedFile, TRAFFIC_TOKEN_HEADER};
pub use body::{Body, BoxError};
pub use front::Front;
pub use proxy::{Gateway, Resolve};
pub use refusal::Refusal;
pub use route::{AGENT_PORT, SANDBOX_ID_HEADER, SANDBOX_PORT_HEADER, Target, route};
pub use serve::{ClientConnection, Transport, serve};
pub use traffic::{LONG, Traffic, TrafficNow};
pub use upstream::{Connect, Upstream, UpstreamOptions};

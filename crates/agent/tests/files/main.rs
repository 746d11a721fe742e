//! The agent's file service, driven over the wire: a real agent process, real requests, real files.

mod http;
mod metadata;
mod rpc;
mod space;
mod support;
mod watch;

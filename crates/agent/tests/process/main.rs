//! The agent's processes and its own endpoints, driven over the wire: a real agent process, the generated client.

mod http;
mod input;
mod lifetime;
mod output;
mod support;
mod terminal;
mod whoami;

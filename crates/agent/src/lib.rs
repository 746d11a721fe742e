//! The program inside every sandbox: PID 1 of the guest and the server of the envd protocol.
//!
//! It has three lives, chosen in [`main`](../torpor_agent_bin/index.html):
//!
//! * **stage 1**: `/init` of the initramfs. Loads the kernel modules that the root disk needs, mounts the disk and
//!   goes over to it ([`boot`]).
//! * **stage 2**: PID 1 of the template's root file system. Mounts what a Linux program expects, brings up the
//!   network, reaps orphans, and serves.
//! * **serve**: an ordinary process on any Linux machine that only serves; tests use it.
//!
//! What it serves, on one port, is described in [`torpor_envd_api`]: processes ([`process`]), files ([`files`]) and
//! the host's `POST /init` ([`init`]) and `GET /telemetry` ([`telemetry`]).
//!
//! Two rules hold everywhere, because the machine can be stopped between any two instructions and continued a year
//! later, or many times over: nothing measures time with the wall clock, and nothing keeps random state that two
//! continuations of one snapshot would share.

// Implementations of the generated services name their response types, which the traits leave open.
#![allow(refining_impl_trait)]

pub mod auth;
pub mod boot;
pub mod error;
pub mod files;
pub mod freeze;
pub mod init;
pub mod metrics;
pub mod paths;
pub mod process;
pub mod server;
pub mod state;
pub mod telemetry;
pub mod trust;
pub mod users;

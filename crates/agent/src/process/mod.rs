//! Processes in the guest: `process.Process`.
//!
//! Words of this module: a *process* is one program that a client had the agent start, the leader of a session of
//! its own; its *feed* is what it writes, handed to any number of *subscribers* (the streams of `Start` and
//! `Connect`); its *input* is the pipe or terminal that clients write to.
//!
//! ```text
//!   Start ──▶ launch ──▶ spawn ──▶ kernel ──▶ reaper (exit status)
//!               │                    │             │
//!               │                  pipes         exited
//!               ▼                    ▼             ▼
//!            Process ◀── Feed ◀── pump ×1…2 ──▶ finish: end event, forget after 30 s
//!               ▲          └──▶ subscribers (Start, Connect …)
//!   SendInput ──┘
//! ```
//!
//! Promises:
//!
//! * A process belongs to the sandbox, not to the connection that started it: it goes on when clients leave, and
//!   its output is then discarded.
//! * Every subscriber gets every byte that is written while it is subscribed, in order, then the end event. The
//!   process waits while a subscriber's buffer (512 KiB) is full. Only if a subscriber takes nothing for ten
//!   seconds while others wait, or after the machine was resumed, is it dropped, with an error.
//! * The end event comes when the process itself has ended and all it wrote has been sent. Descendants that go on
//!   holding its output do not delay the end by more than a moment, and are not disturbed.

mod end;
mod feed;
mod input;
mod launch;
mod pump;
mod reaper;
mod registry;
mod service;
mod session;
mod terminal;

pub use reaper::Reaper;
pub use registry::Processes;
pub use service::register;

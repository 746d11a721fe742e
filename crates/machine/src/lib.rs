//! Virtual machines: QEMU processes, their capture, their warm pool.
//!
//! A *machine* is one QEMU process with everything it stands on, its *berth*: a network namespace with a tap, a
//! working disk, a control group, a user id and a run directory. Machines are started *idle*, before anybody needs
//! them, and kept in a warm pool for each [`Shape`](torpor_types::Shape). A snapshot is *loaded* into an idle machine:
//! its memory file is mapped privately over guest RAM (or cloned into the machine's RAM file: see `memory/mod.rs`), its
//! disk is cloned into the file the machine has open, its device state is read from a socket. Then [`Machine::cont`] lets
//! the guest go on from where it was.
//!
//! ```text
//!  boot ──▶ stopped ──cont──▶ running ──stop_and_capture──▶ captured ──save_memory, open_disk──▶ a snapshot
//!             ▲                  ▲                             │
//!  claim ─▶ idle ──load          └────────────cont─────────────┘
//! ```
//!
//! Where guests are emulated, idle machines rehearse in quiet moments: see `rehearsal.rs`.
//!
//! The processes are children of the server but outlive it, whatever its end: each machine's `record.json` and control
//! socket are enough for the next server to adopt it ([`Machines::adopt`]). A [`Machine`] that is dropped goes on; only
//! [`Machine::destroy`] ends it. An [`Idle`] one that is dropped is destroyed.
//!
//! ```text
//! <run dir>/machines/<machine-id>/        root alone
//!     record.json    what it is: see record.rs
//!     qmp.sock       QEMU's control socket
//!     state          device state, while the machine is captured
//!     qemu.log       what QEMU says; cut when it grows
//!     console.log    the guest's serial console; cut when it grows
//! <disks dir>/<machine-id>/disk           the working disk
//! <disks dir>/<machine-id>/ram            guest RAM, if it is shared
//! ```
//!
//! Nothing outside this crate knows what QMP is: the [`vmm`] traits are as narrow as the list above. Every step is a
//! tracing span (`machine.stop`, `machine.device_state`, `machine.map_memory`, `machine.load_state`, `machine.cont`,
//! …), whose time is the figure to publish.

mod adopt;
mod async_fd;
mod berth;
mod boot;
mod cgroup;
mod error;
mod exit;
mod facts;
mod idle;
mod logs;
mod machine;
mod machines;
mod memory;
mod options;
mod pool;
mod qemu;
mod record;
mod rehearsal;
mod save;
mod uids;
pub mod vmm;

pub use boot::{BootSource, guest_command_line};
pub use error::{
    AdoptError, BootError, CaptureError, ClaimError, ContError, LoadError, SaveError, StartError,
};
pub use facts::HostFacts;
pub use idle::{Idle, LoadSource};
pub use machine::{Ahead, DeviceState, Machine};
pub use machines::Machines;
pub use memory::{MemoryMode, ParseMemoryModeError};
pub use options::MachineOptions;
pub use rehearsal::Rehearsal;
pub use save::{SaveObserver, SaveTarget, SavedMemory};

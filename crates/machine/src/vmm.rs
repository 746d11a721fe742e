//! What Torpor wants of a virtual machine monitor. QEMU is the one implementation.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use torpor_network::Namespace;
use torpor_sys::PageRun;
use torpor_types::Shape;

/// Why the monitor did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The process is gone.
    #[error("the machine's process ended while '{doing}' was being done; its last words: {last_words}")]
    Died {
        /// What was being done.
        doing: &'static str,
        /// Last lines of its log.
        last_words: String,
    },
    /// It did not answer.
    #[error("'{doing}' was not done within {within:?}: the host is overloaded, or the machine hangs")]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// How long it was waited for.
        within: Duration,
    },
    /// It answered with an error.
    #[error("the machine refused '{doing}': {why}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// Its reason.
        why: String,
    },
    /// A system call on the way failed.
    #[error("'{doing}' failed: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Where guest RAM lies in the address space of the machine's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRam {
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

/// What a machine does at its start.
#[derive(Debug)]
pub enum Start<'a> {
    /// Waits for a snapshot.
    Idle,
    /// Waits, stopped, in front of the first instruction of a kernel.
    Boot {
        /// Kernel image.
        kernel: &'a File,
        /// Initial RAM file system.
        initramfs: &'a File,
        /// What the kernel is told, beside what the machine itself needs.
        cmdline: &'a str,
    },
}

/// What a process is started with.
#[derive(Debug)]
pub struct Place<'a> {
    /// Size.
    pub shape: Shape,
    /// Directory for its control socket.
    pub dir: &'a Path,
    /// The disk, read-write.
    pub disk: &'a File,
    /// The file that is its RAM, of the RAM's size and open for its user; `None`: its RAM is to be private, and has to be
    /// mapped by [`Vm::map_memory`] or be filled by booting.
    pub ram: Option<&'a File>,
    /// The network it is started in.
    pub namespace: &'a Namespace,
    /// The tap in it.
    pub tap: OwnedFd,
    /// User id it runs under.
    pub uid: u32,
    /// Files of the control groups it is started in, open for writing.
    pub cgroup_procs: Vec<OwnedFd>,
    /// Takes what it prints.
    pub log: &'a File,
    /// Takes what the guest prints.
    pub console: &'a File,
}

/// Whether the guest executes instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// It does.
    Running,
    /// It does not.
    Stopped,
    /// It does not, and its state was captured since it last ran.
    Captured,
    /// It waits for a snapshot.
    Idle,
}

/// Makes machines.
#[async_trait::async_trait]
pub trait Vmm: std::fmt::Debug + Send + Sync {
    /// Starts a process; it leads its own session and is not bound to the caller's life.
    async fn start(&self, place: Place<'_>, start: Start<'_>) -> Result<(Child, Box<dyn Vm>), VmmError>;

    /// Whether its machines keep translations of guest code through a load ([`Vm::load_state_again`]).
    fn keeps_translations(&self) -> bool;

    /// Reconnects to a process that an earlier server started with its control socket in `dir`, and its private RAM, if
    /// it has such, at `ram`.
    async fn adopt(&self, dir: &Path, ram: Option<GuestRam>) -> Result<Box<dyn Vm>, VmmError>;
}

/// One machine.
#[async_trait::async_trait]
pub trait Vm: std::fmt::Debug + Send + Sync {
    /// Where private guest RAM lies in the process; `None` if its RAM is a file.
    fn guest_ram(&self) -> Option<GuestRam>;

    /// What it is doing.
    async fn run_state(&self) -> Result<RunState, VmmError>;

    /// Stops the guest. No harm if it is stopped already.
    async fn stop(&self) -> Result<(), VmmError>;

    /// Reads the device state (without RAM and disk) of the stopped guest, which can go on afterwards.
    async fn device_state(&self) -> Result<Vec<u8>, VmmError>;

    /// Lays a memory file privately over the RAM of an idle machine whose RAM is private.
    async fn map_memory(&self, memory: &File) -> Result<(), VmmError>;

    /// Begins to remember which pages of its RAM are written. `false` if that cannot be: the kernel is older than 6.7, or
    /// the machine was adopted, or its RAM is a file.
    async fn track_memory(&self) -> Result<bool, VmmError>;

    /// Ends what [`Vm::track_memory`] began.
    async fn untrack_memory(&self) -> Result<(), VmmError>;

    /// Gives an idle machine its device state; it is stopped afterwards.
    async fn load_state(&self, state: &[u8]) -> Result<(), VmmError>;

    /// Puts the stopped machine back to where it was when it had no device state. For it to be given one again,
    /// [`Vm::load_state_again`] is to be used.
    async fn reset(&self) -> Result<(), VmmError>;

    /// Finds out whether [`Vm::load_state_again`] can keep translations here, and gets ready for it. The machine was reset.
    async fn prepare_load_again(&self) -> Result<(), VmmError>;

    /// As [`Vm::load_state`], of a machine that was [reset](Vm::reset). What was translated from guest RAM is kept, but for
    /// that of `stale` pages: all that are other ones than when they were translated have to be among these.
    async fn load_state_again(&self, state: &[u8], stale: &[PageRun]) -> Result<(), VmmError>;

    /// Lets the guest go on.
    async fn cont(&self) -> Result<(), VmmError>;

    /// Changes each time the guest was stopped because there is no space for what it writes to its disk. What it wrote is
    /// kept, and written when it goes on. Ends with the connection.
    fn out_of_space(&self) -> watch::Receiver<u64>;
}

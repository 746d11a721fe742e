//! One QEMU process: how it is confined and started, and what it is told.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use torpor_sys::PageRun;

use super::qmp::{COMMAND_LIMIT, Qmp};
use super::ram::RamSocket;
use crate::vmm::{GuestRam, RunState, Vm, VmmError};

/// How long stopping may take: the guest's finished writes are flushed to its disk file.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// How long reading or loading device state may take; it is some hundred kilobytes.
const STATE_LIMIT: Duration = Duration::from_secs(30);
/// The name under which QEMU is given the socket for its device state.
const STATE_FD: &str = "state";

/// The set of descriptors it is given in, where QEMU wants a path.
const STATE_FDSET: u32 = 3;
/// How often a machine that is being reset is asked whether it is.
const RESET_POLL: Duration = Duration::from_millis(1);

/// A process and our connections to it.
#[derive(Debug)]
pub(super) struct QemuVm {
    qmp: Qmp,
    /// `None` if its RAM is a file.
    guest_ram: Option<GuestRam>,
    /// `None` in an adopted machine, which has its memory, and in one whose RAM is a file.
    ram: Option<RamSocket>,
}

/// What kernels say that know no such tracking, or do not let us.
fn cannot_track(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    [Errno::INVAL, Errno::NOSYS, Errno::PERM].into_iter().any(|known| errno == Some(known))
}

/// Bytes in a file that cannot be written to: QEMU opens it anew, as it is.
fn read_only(bytes: &[u8]) -> io::Result<File> {
    let file = File::from(memfd_create("device-state", MemfdFlags::CLOEXEC)?);
    file.write_all_at(bytes, 0)?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

pub(super) fn io_error(doing: &'static str, source: io::Error) -> VmmError {
    VmmError::Io { doing, source }
}

/// Gives the command its descriptors, its user, and a session of its own.
pub(super) fn confine(
    command: &mut Command,
    uid: u32,
    gid: u32,
    log: &File,
    fds: Vec<(OwnedFd, i32)>,
) -> io::Result<()> {
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    command.uid(uid).gid(gid).current_dir("/");
    let mappings = fds.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).map_err(io::Error::other)?;
    torpor_sys::in_new_session(command);
    Ok(())
}

/// Starts the command in a network namespace.
pub(super) async fn spawn_in(netns: OwnedFd, mut command: Command) -> io::Result<Child> {
    // A namespace belongs to a thread, so a thread of its own enters it and ends there.
    let spawning = move || {
        let thread = std::thread::Builder::new().name("spawn".into()).spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            command.spawn()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts processes panicked")))
    };
    tokio::task::spawn_blocking(spawning).await.map_err(io::Error::other)?
}

/// Connects to a control socket and prepares the machine for capture and load.
pub(super) async fn connect(socket: &Path, log: &Path) -> Result<Qmp, VmmError> {
    let doing = "connecting to QEMU";
    let stream = UnixStream::connect(socket).await.map_err(|error| io_error(doing, error))?;
    let qmp = Qmp::open(stream, log.to_owned()).await?;
    let on = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
    qmp.execute(doing, "migrate-set-capabilities", capabilities).await?;
    // A bandwidth of 0 lifts the throttle, which is meant for networks. No announcement rounds: nobody but the host's own
    // end of the tap could hear them.
    let parameters = json!({ "max-bandwidth": 0, "announce-rounds": 0 });
    qmp.execute(doing, "migrate-set-parameters", parameters).await?;
    Ok(qmp)
}

// === impl QemuVm ===

impl QemuVm {
    pub(super) fn new(qmp: Qmp, guest_ram: Option<GuestRam>, ram: Option<RamSocket>) -> Self {
        Self { qmp, guest_ram, ram }
    }

    /// What QEMU calls its state.
    async fn status(&self, doing: &'static str) -> Result<String, VmmError> {
        let status = self.qmp.execute(doing, "query-status", json!({})).await?;
        Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// The way to the preloaded library.
    fn ram(&self, doing: &'static str) -> Result<&RamSocket, VmmError> {
        let adopted = || VmmError::Refused { doing, why: "an adopted machine has its memory".to_owned() };
        self.ram.as_ref().ok_or_else(adopted)
    }

    /// One end of a new socket pair for us, the other for QEMU under the name [`STATE_FD`].
    async fn state_socket(&self, doing: &'static str) -> Result<UnixStream, VmmError> {
        let (ours, theirs) = StdUnixStream::pair().map_err(|error| io_error(doing, error))?;
        self.qmp.give_fd(doing, STATE_FD, theirs.as_fd()).await?;
        ours.set_nonblocking(true).map_err(|error| io_error(doing, error))?;
        UnixStream::from_std(ours).map_err(|error| io_error(doing, error))
    }
}

#[async_trait::async_trait]
impl Vm for QemuVm {
    fn guest_ram(&self) -> Option<GuestRam> {
        self.guest_ram
    }

    async fn run_state(&self) -> Result<RunState, VmmError> {
        Ok(match self.status("asking for the state").await?.as_str() {
            "running" => RunState::Running,
            "inmigrate" => RunState::Idle,
            "postmigrate" => RunState::Captured,
            _ => RunState::Stopped,
        })
    }

    #[tracing::instrument(name = "machine.stop", skip_all)]
    async fn stop(&self) -> Result<(), VmmError> {
        self.qmp.execute_within("stopping the guest", STOP_LIMIT, "stop", json!({}), None).await.map(drop)
    }

    #[tracing::instrument(name = "machine.device_state", skip_all)]
    async fn device_state(&self) -> Result<Vec<u8>, VmmError> {
        let doing = "reading the device state";
        self.qmp.forget_migrations().await;
        let mut socket = self.state_socket(doing).await?;
        self.qmp.execute(doing, "migrate", json!({ "uri": format!("fd:{STATE_FD}") })).await?;
        let mut state = Vec::with_capacity(256 << 10);
        match tokio::time::timeout(STATE_LIMIT, socket.read_to_end(&mut state)).await {
            Err(_) => return Err(VmmError::Timeout { doing, within: STATE_LIMIT }),
            Ok(Err(error)) => return Err(self.qmp.explain(doing, error)),
            Ok(Ok(_)) => {}
        }
        // `cont` is refused, or worse, until QEMU has finished what follows the last byte.
        self.qmp.migrated(doing, STATE_LIMIT).await?;
        Ok(state)
    }

    #[tracing::instrument(name = "machine.map_memory", skip_all)]
    async fn map_memory(&self, memory: &File) -> Result<(), VmmError> {
        self.ram("mapping the snapshot's memory")?.map(memory).await.map(drop)
    }

    #[tracing::instrument(name = "machine.track_memory", skip_all)]
    async fn track_memory(&self) -> Result<bool, VmmError> {
        let Some(ram) = &self.ram else { return Ok(false) };
        match ram.track().await {
            Ok(_) => Ok(true),
            // The kernel knows no such tracking, or was built without.
            Err(VmmError::Io { source, .. }) if cannot_track(&source) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn untrack_memory(&self) -> Result<(), VmmError> {
        match &self.ram {
            Some(ram) => ram.untrack().await.map(drop),
            None => Ok(()),
        }
    }

    #[tracing::instrument(name = "machine.load_state", skip_all)]
    async fn load_state(&self, state: &[u8]) -> Result<(), VmmError> {
        let doing = "loading the device state";
        self.qmp.forget_migrations().await;
        let mut socket = self.state_socket(doing).await?;
        self.qmp.execute(doing, "migrate-incoming", json!({ "uri": format!("fd:{STATE_FD}") })).await?;
        match tokio::time::timeout(STATE_LIMIT, socket.write_all(state)).await {
            Err(_) => return Err(VmmError::Timeout { doing, within: STATE_LIMIT }),
            Ok(Err(error)) => return Err(self.qmp.explain(doing, error)),
            Ok(Ok(())) => {}
        }
        drop(socket);
        self.qmp.migrated(doing, STATE_LIMIT).await
    }

    #[tracing::instrument(name = "machine.reset", skip_all)]
    async fn reset(&self) -> Result<(), VmmError> {
        let doing = "resetting the machine";
        // Else a reset is the end of the process (`-no-reboot`).
        self.qmp.execute(doing, "set-action", json!({ "reboot": "reset" })).await?;
        self.qmp.execute(doing, "system_reset", json!({})).await?;
        let done = async {
            while self.status(doing).await? != "prelaunch" {
                tokio::time::sleep(RESET_POLL).await;
            }
            Ok(())
        };
        let reset = tokio::time::timeout(STATE_LIMIT, done).await;
        reset.map_err(|_| VmmError::Timeout { doing, within: STATE_LIMIT })??;
        self.qmp.execute(doing, "set-action", json!({ "reboot": "shutdown" })).await.map(drop)
    }

    async fn prepare_load_again(&self) -> Result<(), VmmError> {
        self.ram("keeping what was translated")?.keep_translations(&[]).await.map(drop)
    }

    #[tracing::instrument(name = "machine.load_state_again", skip_all)]
    async fn load_state_again(&self, state: &[u8], stale: &[PageRun]) -> Result<(), VmmError> {
        let doing = "loading the device state";
        let ram = self.ram(doing)?;
        let file = read_only(state).map_err(|error| io_error(doing, error))?;
        ram.keep_translations(stale).await?;
        let set = json!({ "fdset-id": STATE_FDSET });
        let added = self.qmp.execute_within(doing, COMMAND_LIMIT, "add-fd", set.clone(), Some(file.as_fd()));
        added.await?;
        // Meant for Xen: the one command that loads device state, and nothing else, into a machine that has run.
        let path = json!({ "filename": format!("/dev/fdset/{STATE_FDSET}") });
        self.qmp.execute_within(doing, STATE_LIMIT, "xen-load-devices-state", path, None).await?;
        self.qmp.execute(doing, "remove-fd", set).await?;
        ram.loaded().await.map(drop)
    }

    #[tracing::instrument(name = "machine.cont", skip_all)]
    async fn cont(&self) -> Result<(), VmmError> {
        self.qmp
            .execute_within("letting the guest go on", STATE_LIMIT, "cont", json!({}), None)
            .await
            .map(drop)
    }

    fn out_of_space(&self) -> watch::Receiver<u64> {
        self.qmp.out_of_space()
    }
}

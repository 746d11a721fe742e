//! One machine, from idle to its end.

mod room;

use std::fs::{self, File};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{RwLock, watch};
use torpor_network::{Connector, Namespace};
use torpor_types::{MachineId, Shape};

use crate::berth::Berth;
use crate::error::{CaptureError, ContError, SaveError};
use crate::exit::Process;
use crate::logs;
use crate::machines::Live;
use crate::record::{Record, replace};
use crate::save::{SaveTarget, SavedMemory};
use crate::vmm::{RunState, Vm};

/// How long a guest that found no space for its writes waits before they are tried again.
const RETRY_WRITES_AFTER: Duration = Duration::from_secs(1);

/// How soon writes that are tried again, and find no space again, stop the guest again.
const WRITES_FAIL_WITHIN: Duration = Duration::from_millis(100);

/// A machine that carries a guest. Cheap to clone; dropping it leaves the machine as it is.
#[derive(Debug, Clone)]
pub struct Machine(Arc<Inner>);

/// A machine as long as somebody else holds it.
#[derive(Debug, Default)]
pub(crate) struct WeakMachine(Weak<Inner>);

/// The state of a stopped machine's processors and devices; opaque, about 100 KB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState(Vec<u8>);

/// What of a machine's memory was copied before it was stopped. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ahead {
    copied: bool,
}

#[derive(Debug)]
struct Inner {
    berth: Berth,
    vm: Box<dyn Vm>,
    process: Process,
    record: Mutex<Record>,
    /// Held shared while the stopped guest is read, and alone to stop it or to let it go on.
    stopped: RwLock<()>,
    runs: AtomicBool,
    /// It runs, but for want of room in the vault: see room.rs.
    held: AtomicBool,
    /// Counts the times it was let go on.
    went_on: AtomicU64,
    /// Counts the times it went on after it stood still for want of space.
    stood_still: watch::Sender<u64>,
    live: Weak<Live>,
}

// === impl Machine ===

impl Machine {
    pub(crate) fn new(
        berth: Berth,
        vm: Box<dyn Vm>,
        process: Process,
        record: Record,
        runs: bool,
        live: Weak<Live>,
    ) -> Self {
        let (record, stopped, runs) = (Mutex::new(record), RwLock::new(()), AtomicBool::new(runs));
        let machine = Self(Arc::new(Inner {
            berth,
            vm,
            process,
            record,
            stopped,
            runs,
            held: AtomicBool::new(false),
            went_on: AtomicU64::new(0),
            stood_still: watch::Sender::new(0),
            live,
        }));
        machine.go_on_when_there_is_space();
        machine
    }

    /// Its id.
    pub fn id(&self) -> &MachineId {
        &self.0.berth.id
    }

    /// Its size.
    pub fn shape(&self) -> Shape {
        self.0.berth.shape
    }

    /// Number of its process.
    pub fn pid(&self) -> u32 {
        self.0.process.pid()
    }

    /// A handle that connects to ports in the guest.
    pub fn connector(&self) -> Connector {
        self.0.berth.namespace.connector()
    }

    /// Its network.
    pub fn network(&self) -> &Namespace {
        &self.0.berth.namespace
    }

    /// What its owner noted last; null if nothing.
    pub fn note(&self) -> serde_json::Value {
        self.record().note.clone().unwrap_or_default()
    }

    /// Notes something for a later server, in place of what was noted. A machine without a note is not adopted.
    pub fn set_note(&self, note: serde_json::Value) -> io::Result<()> {
        let mut record = self.record();
        record.note = if note.is_null() { None } else { Some(note) };
        record.write(&self.0.berth.site.dir)
    }

    /// Whether the guest runs, as far as was asked for here.
    pub fn runs(&self) -> bool {
        self.0.runs.load(Ordering::Acquire)
    }

    /// Whether it is stopped and its state captured.
    pub fn is_captured(&self) -> bool {
        !self.runs() && self.0.berth.site.state_path().exists()
    }

    /// Lets the stopped guest go on. A save that is under way ends with [`SaveError::Cancelled`], at the latest then.
    ///
    /// From then on the captured state is worth nothing, and is removed.
    pub async fn cont(&self) -> Result<(), ContError> {
        let _alone = self.0.stopped.write().await;
        // Before the guest runs: a state that does not belong to the memory must never be found.
        let _ = fs::remove_file(self.0.berth.site.state_path());
        self.0.runs.store(true, Ordering::Release);
        self.0.went_on.fetch_add(1, Ordering::AcqRel);
        let held = self.has_to_wait_for_room();
        self.0.held.store(held, Ordering::Release);
        if held {
            return Ok(());
        }
        Ok(self.0.vm.cont().await?)
    }

    /// A guest that writes to its disk when the file system under it is full is stopped, and its write kept. Nobody asked
    /// for that stop, so it is tried again until there is space.
    fn go_on_when_there_is_space(&self) {
        let (weak, mut out_of_space) = (self.downgrade(), self.0.vm.out_of_space());
        tokio::spawn(async move {
            while out_of_space.changed().await.is_ok() {
                tokio::time::sleep(RETRY_WRITES_AFTER).await;
                let Some(machine) = weak.upgrade() else { return };
                machine.retry_writes().await;
            }
        });
    }

    async fn retry_writes(&self) {
        let alone = self.0.stopped.write().await;
        // If it was stopped on purpose meanwhile, its writes are tried again when it goes on.
        if !self.runs() || self.0.held.load(Ordering::Acquire) {
            return;
        }
        tracing::warn!(machine = %self.id(), "a guest stands still: there is no space for what it writes to its disk");
        if let Err(error) = self.0.vm.cont().await {
            tracing::error!(machine = %self.id(), %error, "a guest that found no space for its writes does not go on");
            return;
        }
        drop(alone);
        tokio::time::sleep(WRITES_FAIL_WITHIN).await;
        if self.runs() && matches!(self.0.vm.run_state().await, Ok(RunState::Running)) {
            self.0.stood_still.send_modify(|count| *count += 1);
        }
    }

    /// Changes each time the guest goes on after it stood still because there was no space for its writes: its clock is
    /// behind then.
    pub fn stood_still(&self) -> watch::Receiver<u64> {
        self.0.stood_still.subscribe()
    }

    /// Stops the guest and reads its device state. Memory and disk stand still from then on, until [`Machine::cont`].
    ///
    /// Of a machine that is captured already the same state is given again.
    #[tracing::instrument(name = "machine.capture", skip_all, fields(machine = %self.id()))]
    pub async fn stop_and_capture(&self) -> Result<DeviceState, CaptureError> {
        let _alone = self.0.stopped.write().await;
        if self.is_captured() {
            return self.captured_state().map_err(CaptureError::Keep);
        }
        self.0.vm.stop().await?;
        self.0.runs.store(false, Ordering::Release);
        let state = self.0.vm.device_state().await?;
        // For a later server: this one may end before the snapshot is whole.
        replace(&self.0.berth.site.state_path(), &state).map_err(CaptureError::Keep)?;
        Ok(DeviceState(state))
    }

    /// The state that [`Machine::stop_and_capture`] read, perhaps for an earlier server.
    pub fn captured_state(&self) -> io::Result<DeviceState> {
        fs::read(self.0.berth.site.state_path()).map(DeviceState)
    }

    /// Writes what the guest dirtied into `into` while it runs, so that little is left to write while it stands still: to be
    /// followed by [`Machine::save_memory`] into the same file with what this returns, and by [`Machine::untrack`]. Blocks.
    ///
    /// Needs a kernel that can tell which pages are written (Linux 6.7 or later) and a machine of this server's: else nothing
    /// is written, and everything is left to the stop. Of a machine with a RAM file, that is flushed.
    pub fn copy_memory_ahead(&self, into: SaveTarget<'_>) -> Result<Ahead, SaveError> {
        let copied = self.0.berth.memory.save_ahead(&*self.0.vm, self.pid(), into)?;
        Ok(Ahead { copied })
    }

    /// Ends what [`Machine::copy_memory_ahead`] began. Without it the guest writes a little slower.
    pub async fn untrack(&self) {
        self.0.berth.memory.untrack(&*self.0.vm).await;
    }

    /// Flushes what the guest wrote to its disk, so that stopping it has little left to flush. Blocks.
    pub fn flush_disk_ahead(&self) -> io::Result<()> {
        self.0.berth.disk.sync_data()
    }

    /// Whether [`Machine::save_memory`] adds to a clone of the memory file that the machine was loaded from; else it writes a
    /// whole into an empty one.
    pub fn saves_onto_base(&self) -> bool {
        self.0.berth.memory.saves_onto_base()
    }

    /// Writes the pages that the guest dirtied since its memory was mapped into `into`, which has to be a clone of
    /// the memory file it was loaded from (of a machine that was booted, or does not [save onto its
    /// base](Machine::saves_onto_base): an empty file of its memory's size).
    ///
    /// If some of it was copied into that file `ahead`, only what was written since is.
    ///
    /// Blocks; `cancelled` is asked about once for each mebibyte. Nothing is flushed. A guest that is let go on meanwhile
    /// cancels it.
    pub fn save_memory(
        &self,
        into: SaveTarget<'_>,
        ahead: Ahead,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<SavedMemory, SaveError> {
        let stopped = self.0.stopped.blocking_read();
        if self.runs() {
            return Err(SaveError::Running);
        }
        let went_on = self.0.went_on.load(Ordering::Acquire);
        drop(stopped);
        let hold = || {
            let stopped = self.0.stopped.blocking_read();
            // Stopped again it is another guest than that of which a part was copied.
            match cancelled() || self.0.went_on.load(Ordering::Acquire) != went_on {
                true => Err(SaveError::Cancelled),
                false => Ok(stopped),
            }
        };
        self.0.berth.memory.save(self.vm(), self.pid(), into, ahead.copied, &hold)
    }

    /// The working disk, opened read-only, to be cloned while the machine is stopped.
    pub fn open_disk(&self) -> io::Result<File> {
        File::open(self.0.berth.site.disk_path())
    }

    /// Starts writing what the guest wrote to its disk, so that stopping has less to wait for.
    pub(crate) fn start_write_back(&self) -> io::Result<()> {
        torpor_sys::start_write_back(&self.0.berth.disk)
    }

    /// How much of the vault [`Machine::save_memory`] takes up at most, in bytes. 0 if the process is gone.
    pub fn room_to_save(&self) -> u64 {
        self.0.berth.memory.room_to_save(self.pid())
    }

    /// Resolves when the process has ended, by itself or by [`Machine::destroy`].
    pub async fn exited(&self) {
        self.0.process.ended().await;
    }

    /// Whether the process has ended.
    pub fn has_exited(&self) -> bool {
        self.0.process.has_ended()
    }

    /// The last lines QEMU printed, in one line; empty if it printed nothing.
    pub fn last_words(&self) -> String {
        logs::last_words(&self.0.berth.site.dir.join(logs::QEMU_LOG))
    }

    /// The end of what the guest printed on its console, at most 64 KiB.
    pub fn console(&self) -> String {
        logs::tail(&self.0.berth.site.dir.join(logs::CONSOLE_LOG))
    }

    /// Ends the machine and removes all that is its own. Waits until its memory is free.
    #[tracing::instrument(name = "machine.destroy", skip_all, fields(machine = %self.id()))]
    pub async fn destroy(&self) {
        self.0.process.kill().await;
        let machine = self.clone();
        let removed = tokio::task::spawn_blocking(move || machine.0.berth.site.remove()).await;
        if let Err(error) = removed {
            tracing::error!(%error, "what a machine leaves could not be removed");
        }
        if let Some(live) = self.0.live.upgrade() {
            live.forget(self.id());
        }
    }

    /// As [`Machine::destroy`], where nothing can be waited for.
    pub(crate) fn destroy_in_background(self) {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move { self.destroy().await });
            }
            // The server is ending. What is left is removed by the next one.
            Err(_) => self.0.process.kill_now(),
        }
    }

    pub(crate) fn vm(&self) -> &dyn Vm {
        self.0.vm.as_ref()
    }

    pub(crate) fn berth(&self) -> &Berth {
        &self.0.berth
    }

    /// Its run directory.
    pub fn run_dir(&self) -> &std::path::Path {
        &self.0.berth.site.dir
    }

    pub(crate) fn downgrade(&self) -> WeakMachine {
        WeakMachine(Arc::downgrade(&self.0))
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl WeakMachine ===

impl WeakMachine {
    pub(crate) fn upgrade(&self) -> Option<Machine> {
        self.0.upgrade().map(Machine)
    }
}

// === impl DeviceState ===

impl DeviceState {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

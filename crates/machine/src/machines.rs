//! All machines of a server.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use torpor_types::{Accelerator, MachineId, Shape};

use crate::berth::{Ground, machines_dir};
use crate::boot::{BootSource, into_memory};
use crate::cgroup::Cgroups;
use crate::error::{AdoptError, BootError, ClaimError, StartError};
use crate::exit::Process;
use crate::facts::HostFacts;
use crate::idle::Idle;
use crate::logs;
use crate::machine::{Machine, WeakMachine};
use crate::memory::MemoryMode;
use crate::options::MachineOptions;
use crate::pool::{Pool, Step};
use crate::qemu::{self, Qemu};
use crate::record::Record;
use crate::rehearsal::Rehearsal;
use crate::uids::Uids;
use crate::vmm::{Place, Start, Vmm};

/// How often logs are looked at, to cut those that have grown too long.
const LOGS_EVERY: Duration = Duration::from_secs(10);
/// How often disks of running machines are written back.
///
/// Stopping a machine flushes its disk. What the guest wrote and did not flush lies in the host's page cache for up to
/// half a minute: 200 MiB of it made a stop take 172 ms instead of 0.3. The guest has kept it back for as long already,
/// so there is nothing to gain by keeping it longer.
const WRITE_BACK_EVERY: Duration = Duration::from_millis(500);
/// How long the pool waits after a machine could not be started.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// User ids in the range of one server, and how many ranges there are.
const UIDS_PER_SERVER: u32 = 10_000;
const UID_RANGES: u32 = 20_000;

/// The machines of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Machines(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) ground: Ground,
    pub(crate) vmm: Box<dyn Vmm>,
    facts: HostFacts,
    pool: Pool,
    pub(crate) live: Arc<Live>,
}

/// The machines this server made or adopted and has not destroyed.
#[derive(Debug, Default)]
pub(crate) struct Live {
    map: Mutex<HashMap<MachineId, WeakMachine>>,
    room_is_low: AtomicBool,
}

// === impl Machines ===

impl Machines {
    /// Looks what the host offers, and starts to keep machines warm as far as [`Machines::keep_warm`] was told.
    ///
    /// Takes about 150 ms.
    pub async fn start(options: MachineOptions) -> Result<Self, StartError> {
        let MachineOptions { qemu, ram_map, accelerator, memory, run_dir, disks_dir, .. } = options;
        // Blocks for the time a measurement and a process take: nobody else is served yet.
        let (program, version) = qemu::find(qemu.as_deref(), accelerator)?;
        if memory == MemoryMode::Private {
            let library = fs::File::open(&ram_map);
            library.map_err(|source| StartError::NoLibrary { path: ram_map.clone(), source })?;
        }
        let facts = qemu::facts(accelerator, version);
        let kvm_gid = (accelerator == Accelerator::Kvm)
            .then(|| fs::metadata("/dev/kvm").map(|device| device.gid()).ok())
            .flatten();
        let io_uring = torpor_sys::io_uring_works();
        tracing::info!(?facts, io_uring, %memory, program = %program.display(), "machines");
        let qemu = Qemu { program, ram_map, facts: facts.clone(), io_uring, kvm_gid };
        let machines_dir = machines_dir(&run_dir);
        for path in [&machines_dir, &disks_dir] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(path);
            made.map_err(|source| StartError::Directory { path: path.clone(), source })?;
        }
        let ground = Ground {
            run_dir,
            disks_dir,
            accelerator,
            memory,
            network: options.network,
            cgroups: Cgroups::detect(&options.instance),
            uids: Uids::new(uid_base(options.uid_base, &options.instance), recorded_uids(&machines_dir)),
        };
        let (pool, live) = (Pool::new(options.warm_limit), Arc::default());
        let inner = Arc::new(Inner { ground, vmm: Box::new(qemu), facts, pool, live });
        tokio::spawn(keep_pool(Arc::downgrade(&inner)));
        tokio::spawn(cut_logs(Arc::downgrade(&inner)));
        tokio::spawn(write_back(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// What of this host has to match for a snapshot's memory to be resumed on it.
    pub fn facts(&self) -> &HostFacts {
        &self.0.facts
    }

    /// Keeps `target` machines of that shape ready, as far as the limit over all shapes allows. They rehearse
    /// `rehearsal`, where that makes a guest quicker: where it is emulated, by a QEMU that can keep what it translated.
    pub fn keep_warm(&self, shape: Shape, target: usize, rehearsal: Option<Arc<dyn Rehearsal>>) {
        self.0.pool.keep(shape, target, rehearsal.filter(|_| self.0.rehearses()));
    }

    pub(crate) fn live(&self) -> &Live {
        &self.0.live
    }

    /// How many machines of that shape are ready, rehearsed or not.
    pub fn warm(&self, shape: &Shape) -> usize {
        self.0.pool.ready(shape)
    }

    /// How many of them have rehearsed.
    pub fn rehearsed(&self, shape: &Shape) -> usize {
        self.0.pool.rehearsed(shape)
    }

    /// An idle machine, from the warm pool or started now.
    #[tracing::instrument(name = "machine.claim", skip_all, fields(warm, rehearsed))]
    pub async fn claim(&self, shape: &Shape) -> Result<Idle, ClaimError> {
        let warm = self.0.pool.take(shape);
        tracing::Span::current().record("warm", warm.is_some());
        let rehearsed = warm.as_ref().is_some_and(|idle| idle.rehearsed().is_some());
        tracing::Span::current().record("rehearsed", rehearsed);
        match warm {
            Some(idle) => Ok(idle),
            None => self.0.start_machine(*shape, Start::Idle).await,
        }
    }

    /// Starts a machine that boots a kernel. It is stopped in front of the first instruction.
    #[tracing::instrument(name = "machine.boot", skip_all)]
    pub async fn boot(&self, shape: &Shape, source: BootSource) -> Result<Machine, BootError> {
        let (kernel, initramfs) = (into_memory(&source.kernel)?, into_memory(&source.initramfs)?);
        let start = Start::Boot { kernel: &kernel, initramfs: &initramfs, cmdline: &source.cmdline };
        let idle = self.0.start_machine(*shape, start).await?;
        idle.machine().clone_disk_from(source.disk).await?;
        Ok(idle.into_machine())
    }

    /// Takes over the machines that an earlier server of the same run directory left: those that carry a note are
    /// given back, as they were, running or stopped; everything else is removed. Call it once, at the start.
    #[tracing::instrument(name = "machine.adopt", skip_all)]
    pub async fn adopt(&self) -> Result<Vec<Machine>, AdoptError> {
        crate::adopt::adopt(&self.0).await
    }

    /// The end of what the guest of that machine printed on its console, at most 64 KiB; empty if it is gone.
    pub fn console_log(&self, id: &MachineId) -> String {
        logs::tail(&self.0.ground.site(id).dir.join(logs::CONSOLE_LOG))
    }

    /// Ends the idle machines and starts no more ahead of need, within `limit`: for an orderly stop. Machines that carry
    /// a guest go on.
    pub async fn stop_warming(&self, limit: Duration) {
        let idle = self.0.pool.close();
        let mut ending = tokio::task::JoinSet::new();
        idle.into_iter().for_each(|idle| drop(ending.spawn(idle.destroy())));
        if tokio::time::timeout(limit, ending.join_all()).await.is_err() {
            tracing::warn!("not all idle machines have ended; the next server removes what is left");
        }
    }

    /// Ends every machine of this run directory, whoever made it, and removes what held them.
    pub async fn remove_all(&self) {
        for idle in self.0.pool.close() {
            idle.destroy().await;
        }
        for machine in self.0.live.all() {
            machine.destroy().await;
        }
        // Those that nobody holds any more.
        match crate::adopt::left(&self.0) {
            Ok(left) => {
                for id in left {
                    crate::adopt::clear(&self.0, &id).await;
                }
            }
            Err(error) => tracing::warn!(%error, "not all machines may be gone"),
        }
        self.0.ground.cgroups.remove_if_empty();
        // Errors mean that somebody else keeps something there.
        let _ = fs::remove_dir(self.0.ground.machines_dir());
        let _ = fs::remove_dir(&self.0.ground.run_dir);
    }
}

// === impl Inner ===

impl Inner {
    /// Whether machines of the pool rehearse. Those whose memory is shared do not: nothing is preloaded that could forget what has
    /// changed.
    fn rehearses(&self) -> bool {
        self.ground.memory == MemoryMode::Private && self.vmm.keeps_translations()
    }

    /// Makes a berth and starts a process in it. On an error nothing is left.
    async fn start_machine(&self, shape: Shape, start: Start<'_>) -> Result<Idle, ClaimError> {
        let id = MachineId::random();
        self.live.announce(&id);
        let started = self.start_in_berth(id.clone(), shape, start).await;
        match &started {
            Ok(idle) => self.live.add(&idle.machine()),
            Err(_) => self.live.forget(&id),
        }
        started
    }

    /// Lets one machine of the pool rehearse.
    async fn rehearse(&self, shape: Shape) {
        let Some((idle, rehearsal)) = self.pool.take_unrehearsed(&shape) else { return };
        match idle.rehearse(rehearsal.as_ref()).await {
            Ok(idle) => self.pool.put(shape, idle),
            Err(error) => {
                let name = rehearsal.name();
                tracing::warn!(%error, name, "machines do not rehearse: the first answers of sandboxes take longer");
                self.pool.give_up(&shape, rehearsal.as_ref());
            }
        }
    }

    async fn start_in_berth(
        &self,
        id: MachineId,
        shape: Shape,
        start: Start<'_>,
    ) -> Result<Idle, ClaimError> {
        let (berth, handover) = self.ground.make(id.clone(), shape).await?;
        let place = Place {
            shape,
            dir: &berth.site.dir,
            disk: &berth.disk,
            ram: berth.memory.file(),
            namespace: &berth.namespace,
            tap: handover.tap,
            uid: berth.uid.get(),
            cgroup_procs: Vec::new(),
            log: &handover.log,
            console: &handover.console,
        };
        let started = async {
            let cgroup_procs = berth.site.cgroup.procs();
            let cgroup_procs =
                cgroup_procs.map_err(|source| ClaimError::File { what: "a control group", source })?;
            let (child, vm) = self.vmm.start(Place { cgroup_procs, ..place }, start).await?;
            let process = Process::of_child(child);
            let process =
                process.map_err(|source| ClaimError::File { what: "a handle of the process", source })?;
            let (pid, start_ticks) = (process.pid(), process.start_ticks());
            let ram = berth.memory.record(vm.guest_ram()).ok_or_else(|| ClaimError::File {
                what: "its record",
                source: std::io::Error::other("QEMU does not say where its RAM is"),
            })?;
            let record = Record::new(id, shape, pid, start_ticks, berth.uid.get(), ram);
            record
                .write(&berth.site.dir)
                .map_err(|source| ClaimError::File { what: "its record", source })?;
            Ok((process, vm, record))
        };
        match started.await {
            Ok((process, vm, record)) => {
                Ok(Idle::new(Machine::new(berth, vm, process, record, false, Arc::downgrade(&self.live))))
            }
            Err(error) => {
                // Whatever was started is in the control group, and ends with it.
                let removed = tokio::task::spawn_blocking(move || berth.site.remove()).await;
                if let Err(error) = removed {
                    tracing::error!(%error, "what a machine leaves could not be removed");
                }
                Err(error)
            }
        }
    }
}

// === impl Live ===

impl Live {
    fn announce(&self, id: &MachineId) {
        self.map().insert(id.clone(), WeakMachine::default());
    }

    pub(crate) fn add(&self, machine: &Machine) {
        self.map().insert(machine.id().clone(), machine.downgrade());
    }

    pub(crate) fn forget(&self, id: &MachineId) {
        self.map().remove(id);
    }

    pub(crate) fn has(&self, id: &MachineId) -> bool {
        self.map().contains_key(id)
    }

    pub(crate) fn all(&self) -> Vec<Machine> {
        self.map().values().filter_map(WeakMachine::upgrade).collect()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<MachineId, WeakMachine>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether guests that fill the vault may not run.
    pub(crate) fn is_room_low(&self) -> bool {
        self.room_is_low.load(Ordering::Acquire)
    }

    pub(crate) fn set_room_is_low(&self, is_low: bool) {
        self.room_is_low.store(is_low, Ordering::Release);
    }
}

/// First user id of one server: servers on one host have ranges of their own, so that machines of two never share one.
fn uid_base(base: u32, instance: &str) -> u32 {
    // FNV-1a; std's hasher may change with the compiler, and adopted machines keep their ids.
    let hash = instance
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    base + hash % UID_RANGES * UIDS_PER_SERVER
}

/// User ids of machines that an earlier server left, so that no new one gets theirs.
fn recorded_uids(machines_dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(machines_dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Record::read(&entry.path()).ok().map(|record| record.uid)).collect()
}

/// Keeps the pool at its targets as long as the server has machines.
async fn keep_pool(inner: Weak<Inner>) {
    loop {
        let Some(inner) = inner.upgrade() else { return };
        // Bounded, so that this task does not keep the machines from being dropped.
        let Ok(step) = tokio::time::timeout(AFTER_FAILURE, inner.pool.next()).await else { continue };
        match step {
            Step::End(shape) => {
                if let Some(idle) = inner.pool.discard(&shape) {
                    idle.destroy().await;
                }
            }
            Step::Start(shape) => match inner.start_machine(shape, Start::Idle).await {
                Ok(idle) => inner.pool.put(shape, idle),
                Err(error) => {
                    tracing::warn!(%error, "no machine could be started ahead of need; it is tried again");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            },
            Step::Rehearse(shape) => inner.rehearse(shape).await,
        }
    }
}

async fn cut_logs(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(LOGS_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        for machine in inner.live.all() {
            logs::cut(machine.run_dir());
        }
    }
}

async fn write_back(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(WRITE_BACK_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        let running: Vec<Machine> = inner.live.all().into_iter().filter(Machine::runs).collect();
        drop(inner);
        if running.is_empty() {
            continue;
        }
        let started = tokio::task::spawn_blocking(move || {
            for machine in running {
                if let Err(error) = machine.start_write_back() {
                    tracing::debug!(%error, machine = %machine.id(), "a disk is not written back early");
                }
            }
        });
        // A panic there is a pause that takes longer.
        let _ = started.await;
    }
}

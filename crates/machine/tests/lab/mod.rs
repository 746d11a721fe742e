//! Real machines with a tiny guest, in a network of the test's own.
//!
//! The guest is Debian's kernel, as the root file system of a template carries it, with one static program as its whole
//! user space (`tests/guest/init.rs`), which `rustc` compiles when a test needs it.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use torpor_machine::{
    Ahead, BootSource, DeviceState, LoadSource, Machine, MachineOptions, Machines, MemoryMode, SavedMemory,
};
use torpor_network::{AGENT_PORT, Connector, Network, NetworkOptions};
use torpor_types::{Accelerator, MIB, Shape};

pub(crate) const SHAPE: Shape = Shape { vcpus: 1, memory_mib: 256, disk_mib: 64 };
const INSTANCE: &str = "0a000002";

/// Machines, and files on a file system that can clone.
pub(crate) struct Lab {
    pub(crate) machines: Machines,
    pub(crate) network: Network,
    pub(crate) dir: PathBuf,
    /// How the machines have their memory.
    pub(crate) mode: MemoryMode,
    snapshots: std::sync::atomic::AtomicU32,
}

/// A snapshot without manifest.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) memory: PathBuf,
    pub(crate) disk: PathBuf,
    pub(crate) state: Vec<u8>,
    pub(crate) saved: SavedMemory,
}

/// A connection to the program in the guest.
pub(crate) struct Guest(BufReader<TcpStream>);

/// Runs `test` with machines of its own, and checks that nothing of them is left. Their memory is as TORPOR_VAULT_MEMORY
/// says, private if it says nothing.
pub(crate) fn in_lab<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    let mode = std::env::var("TORPOR_VAULT_MEMORY")
        .map_or_else(|_| MemoryMode::default(), |mode| mode.parse().unwrap());
    in_lab_with(mode, test);
}

/// As [`in_lab`], with that kind of memory.
pub(crate) fn in_lab_with<F: Future<Output = ()>>(
    mode: MemoryMode,
    test: impl FnOnce(Lab) -> F + Send + 'static,
) {
    let thread = std::thread::spawn(move || {
        // Threads of the runtime inherit the namespace of this one.
        torpor_sys::netns::unshare_network().expect("needs root");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let data = PathBuf::from(std::env::var_os("TORPOR_TEST_DATA_DIR").expect("run by make test"));
        let dir = tempfile::Builder::new().prefix("machine-test-").tempdir_in(data.join("vault")).unwrap();
        let path = dir.path().to_owned();
        make_guest(&path);
        let lab = runtime.block_on(Lab::open(&path, mode));
        let (machines, network) = (lab.machines.clone(), lab.network.clone());
        let result = catch_unwind(AssertUnwindSafe(|| runtime.block_on(test(lab))));
        runtime.block_on(async {
            machines.remove_all().await;
            network.remove_all().await.unwrap();
        });
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        let left: Vec<_> = fs::read_dir(path.join("disks")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!path.join("run").exists());
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

// === impl Lab ===

impl Lab {
    pub(crate) async fn open(dir: &Path, mode: MemoryMode) -> Self {
        let mut options = NetworkOptions::new(INSTANCE.parse().unwrap());
        // Nobody asks it anything.
        options.resolver = Some(std::net::Ipv4Addr::new(10, 99, 0, 53).into());
        let network = Network::start(options).await.unwrap();
        let machines = start(dir, &network, mode).await;
        Self { machines, network, dir: dir.to_owned(), mode, snapshots: Default::default() }
    }

    /// What another server finds after this one is gone.
    pub(crate) async fn next_server(&self) -> Machines {
        self.next_server_with(self.mode).await
    }

    /// The same, if it is told to start machines with that kind of memory.
    pub(crate) async fn next_server_with(&self, mode: MemoryMode) -> Machines {
        start(&self.dir, &self.network, mode).await
    }

    /// A machine whose guest has just started.
    pub(crate) async fn boot(&self) -> (Machine, Guest) {
        let disk = File::create_new(self.dir.join("empty")).unwrap();
        disk.set_len(SHAPE.disk_bytes()).unwrap();
        fs::remove_file(self.dir.join("empty")).unwrap();
        let source = BootSource {
            kernel: self.dir.join("vmlinuz"),
            initramfs: self.dir.join("initramfs"),
            cmdline: String::new(),
            disk,
        };
        let machine = self.machines.boot(&SHAPE, source).await.unwrap();
        machine.cont().await.unwrap();
        let booted = tokio::time::timeout(Duration::from_secs(120), Guest::appearing(machine.connector()));
        let guest = booted.await.unwrap_or_else(|_| panic!("{} {}", machine.last_words(), machine.console()));
        (machine, guest)
    }

    /// Where the next snapshot's files go.
    fn next_snapshot(&self, what: &str) -> PathBuf {
        let n = self.snapshots.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.dir.join(format!("{what}-{n}"))
    }

    /// Saves a captured machine that came from `base`, or was booted.
    pub(crate) async fn save(
        &self,
        machine: &Machine,
        state: &DeviceState,
        base: Option<&Snapshot>,
    ) -> Snapshot {
        let memory = self.memory_file(base.filter(|_| machine.saves_onto_base()));
        self.save_into(machine, state, memory, Ahead::default()).await
    }

    /// A new file that holds the memory of `base`, or that of a machine that was booted.
    pub(crate) fn memory_file(&self, base: Option<&Snapshot>) -> (PathBuf, File) {
        let path = self.next_snapshot("memory");
        let file = File::create_new(&path).unwrap();
        match base {
            Some(base) => clone(&File::open(&base.memory).unwrap(), &file),
            None => file.set_len(SHAPE.memory_bytes()).unwrap(),
        }
        (path, file)
    }

    /// Saves the rest of a captured machine, after what was copied `ahead`.
    pub(crate) async fn save_into(
        &self,
        machine: &Machine,
        state: &DeviceState,
        (memory, memory_file): (PathBuf, File),
        ahead: Ahead,
    ) -> Snapshot {
        let disk = self.next_snapshot("disk");
        clone(&machine.open_disk().unwrap(), &File::create_new(&disk).unwrap());
        let saving = machine.clone();
        let save = move || saving.save_memory((&memory_file).into(), ahead, &|| false).unwrap();
        let saved = tokio::task::spawn_blocking(save).await.unwrap();
        Snapshot { memory, disk, state: state.as_bytes().to_vec(), saved }
    }

    /// Loads a snapshot into an idle machine. It is stopped.
    pub(crate) async fn load(&self, snapshot: &Snapshot) -> Machine {
        let idle = self.machines.claim(&SHAPE).await.unwrap();
        idle.load(snapshot.open()).await.unwrap()
    }

    /// Loads a snapshot, lets its guest go on, and connects to it.
    pub(crate) async fn resume(&self, snapshot: &Snapshot) -> (Machine, Guest) {
        let machine = self.load(snapshot).await;
        machine.cont().await.unwrap();
        let guest = Guest::connect(&machine).await;
        (machine, guest)
    }
}

async fn start(dir: &Path, network: &Network, mode: MemoryMode) -> Machines {
    let options = MachineOptions {
        qemu: None,
        // Shared memory has to do without.
        ram_map: if mode == MemoryMode::Private { ram_map() } else { PathBuf::from("/nowhere") },
        memory: mode,
        accelerator: Accelerator::Tcg,
        run_dir: dir.join("run"),
        disks_dir: dir.join("disks"),
        network: network.clone(),
        instance: INSTANCE.to_owned(),
        uid_base: MachineOptions::DEFAULT_UID_BASE,
        warm_limit: MachineOptions::DEFAULT_WARM_LIMIT,
    };
    Machines::start(options).await.unwrap()
}

// === impl Snapshot ===

impl Snapshot {
    /// What its memory takes up on the disk.
    pub(crate) fn memory_bytes(&self) -> u64 {
        File::open(&self.memory).unwrap().sync_all().unwrap();
        fs::metadata(&self.memory).unwrap().blocks() * 512
    }

    /// Makes it durable, as published snapshots are.
    pub(crate) fn flush(&self) {
        [&self.memory, &self.disk].iter().for_each(|path| File::open(path).unwrap().sync_all().unwrap());
    }

    pub(crate) fn open(&self) -> LoadSource {
        LoadSource {
            disk: File::open(&self.disk).unwrap(),
            memory: File::open(&self.memory).unwrap(),
            state: self.state.clone(),
            note: serde_json::json!({ "test": true }),
        }
    }
}

// === impl Guest ===

impl Guest {
    pub(crate) async fn connect(machine: &Machine) -> Self {
        Self::at(&machine.connector()).await
    }

    pub(crate) async fn at(connector: &Connector) -> Self {
        Self(BufReader::new(connector.connect(AGENT_PORT).await.unwrap()))
    }

    /// Waits until a guest that boots answers; the caller sets the limit.
    async fn appearing(connector: Connector) -> Self {
        let mut often = tokio::time::interval(Duration::from_millis(50));
        loop {
            often.tick().await;
            if let Ok(stream) = connector.connect_within(AGENT_PORT, Duration::from_secs(1)).await {
                return Self(BufReader::new(stream));
            }
        }
    }

    /// One command, one answer: see `tests/guest/init.rs`.
    pub(crate) async fn ask(&mut self, command: &str) -> String {
        let exchange = async {
            self.0.write_all(format!("{command}\n").as_bytes()).await?;
            let mut answer = String::new();
            self.0.read_line(&mut answer).await?;
            std::io::Result::Ok(answer.trim_end().to_owned())
        };
        let within = Duration::from_secs(120);
        tokio::time::timeout(within, exchange)
            .await
            .unwrap_or_else(|_| panic!("no answer to {command}"))
            .unwrap()
    }
}

/// Fails unless the snapshot's memory is the machine's, byte for byte.
pub(crate) fn assert_same_memory(machine: &Machine, snapshot: &Snapshot) {
    let file = File::open(&snapshot.memory).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SHAPE.memory_bytes());
    let address = guest_ram(machine);
    let (mut held, mut saved) = (vec![0; MIB as usize], vec![1; MIB as usize]);
    for mib in 0..u64::from(SHAPE.memory_mib) {
        torpor_sys::read_process_memory(machine.pid(), address + mib * MIB, &mut held).unwrap();
        file.read_exact_at(&mut saved, mib * MIB).unwrap();
        assert!(held == saved, "they differ at {mib} MiB");
    }
}

/// Where guest RAM lies in the machine's process.
fn guest_ram(machine: &Machine) -> u64 {
    let record = fs::read(machine.run_dir().join("record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    if let Some(address) = record["ram"]["address"].as_u64() {
        assert_eq!(record["ram"]["len"].as_u64(), Some(SHAPE.memory_bytes()));
        return address;
    }
    let file = format!("/{}/{}", machine.id(), record["ram"]["file"].as_str().unwrap());
    let maps = fs::read_to_string(format!("/proc/{}/maps", machine.pid())).unwrap();
    let range = maps.lines().find(|line| line.ends_with(&file)).unwrap().split(' ').next().unwrap();
    let ends: Vec<_> = range.split('-').map(|end| u64::from_str_radix(end, 16).unwrap()).collect();
    assert_eq!(ends[1] - ends[0], SHAPE.memory_bytes());
    ends[0]
}

pub(crate) fn clone(from: &File, to: &File) {
    rustix::fs::ioctl_ficlone(to, from).unwrap();
}

/// The library as `torpor setup` extracted it.
fn ram_map() -> PathBuf {
    let lib = PathBuf::from(std::env::var_os("TORPOR_TEST_DATA_DIR").unwrap()).join("lib");
    let files = fs::read_dir(&lib).unwrap().map(|entry| entry.unwrap().path());
    let mut found = files.filter(|path| path.to_string_lossy().contains("ram-map"));
    found.next().unwrap_or_else(|| panic!("no ram-map in {}", lib.display()))
}

/// A root file system that `torpor setup` built, for its kernel and modules.
fn rootfs() -> PathBuf {
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("torpor-cache");
    let configured = std::env::var_os("TORPOR_CACHE_DIR").map(PathBuf::from);
    let caches = [configured.unwrap_or(target), "/var/cache/torpor".into()];
    let entries = caches.iter().filter_map(|cache| fs::read_dir(cache).ok()).flatten().flatten();
    let mut found = entries.map(|entry| entry.path()).filter(|path| path.join("rootfs.json").exists());
    found.next().unwrap_or_else(|| panic!("no root file system in {caches:?}"))
}

/// Puts the guest's kernel and initial RAM file system into `dir`.
fn make_guest(dir: &Path) {
    let init = dir.join("init");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.rs");
    let compiled = Command::new("rustc")
        .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .args([&init, &source])
        .status();
    assert!(compiled.unwrap().success());
    let rootfs = rootfs();
    let mut archive = Vec::new();
    for name in ["dev", "modules"] {
        archive_entry(&mut archive, name, 0o040_755, (0, 0), &[]);
    }
    archive_entry(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
    archive_entry(&mut archive, "init", 0o100_755, (0, 0), &fs::read(&init).unwrap());
    for module in fs::read_dir(rootfs.join("modules")).unwrap() {
        let module = module.unwrap();
        let name = format!("modules/{}", module.file_name().to_str().unwrap());
        archive_entry(&mut archive, &name, 0o100_644, (0, 0), &fs::read(module.path()).unwrap());
    }
    archive_entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    fs::write(dir.join("initramfs"), archive).unwrap();
    std::os::unix::fs::symlink(rootfs.join("vmlinuz"), dir.join("vmlinuz")).unwrap();
}

/// One file of a `cpio` archive (`newc`), as the kernel unpacks it.
fn archive_entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let fields =
        [0, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
    write!(archive, "070701").unwrap();
    fields.iter().for_each(|field| write!(archive, "{field:08x}").unwrap());
    write!(archive, "{name}\0").unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

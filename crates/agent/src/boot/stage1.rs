//! Stage 1: `/init` of the initramfs.

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    io::Errno,
    mount::{MountFlags, mount, mount_move},
    process::{chdir, chroot},
    system::finit_module,
};

use super::{AGENT, BootError, Doing, STAGE2, make_directory, mounts};

/// The modules to load, one path a line, in order.
const MODULES_LIST: &str = "/modules.list";
const DISK: &str = "/dev/vda";
const NEW_ROOT: &str = "/root";
/// What the disk is mounted with. Blocks of removed files are given back to the host.
const DISK_OPTIONS: &CStr = c"discard";
/// How long the disk's driver may take to find it.
const DISK_PATIENCE: Duration = Duration::from_secs(20);

/// Goes over to the disk. Returns only if that failed.
pub fn run() -> BootError {
    match prepare() {
        Ok(()) => {
            let source = Command::new(AGENT).arg(STAGE2).env_clear().exec();
            BootError { doing: format!("starting {AGENT}"), source }
        }
        Err(error) => error,
    }
}

fn prepare() -> Result<(), BootError> {
    for early in &mounts::EARLY {
        early.mount()?;
    }
    load_modules()?;
    wait_for_disk()?;
    mount(DISK, NEW_ROOT, "ext4", MountFlags::empty(), DISK_OPTIONS)
        .doing(format_args!("mounting {DISK}, which has to hold an ext4 file system,"))?;
    for early in &mounts::EARLY {
        let target = in_new_root(early.target);
        make_directory(&target)?;
        mount_move(early.target, &target).doing(format_args!("moving {}", early.target))?;
    }
    mounts::mount_run(&in_new_root("/run"))?;
    copy_agent()?;
    free_initramfs();
    switch_root()
}

fn load_modules() -> Result<(), BootError> {
    let list = fs::read_to_string(MODULES_LIST).doing(format_args!("reading {MODULES_LIST}"))?;
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let module = File::open(path).doing(format_args!("opening the kernel module {path}"))?;
        match finit_module(&module, c"", 0) {
            Err(Errno::EXIST) => {}
            other => other.doing(format_args!("loading the kernel module {path}"))?,
        }
    }
    Ok(())
}

/// Waits for the node that the kernel makes when the driver has found the disk.
fn wait_for_disk() -> Result<(), BootError> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).doing("watching /dev")?;
    inotify::add_watch(&watch, "/dev", inotify::WatchFlags::CREATE).doing("watching /dev")?;
    let deadline = Instant::now() + DISK_PATIENCE;
    while !Path::new(DISK).exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let source = io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "it did not appear within {} s; is virtio_blk in {MODULES_LIST}?",
                    DISK_PATIENCE.as_secs()
                ),
            );
            return Err(source).doing(format_args!("waiting for the disk {DISK}"));
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        if poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&left)).is_ok_and(|ready| ready > 0) {
            // What was made does not matter, only that something was.
            let _ = rustix::io::read(&watch, &mut [0_u8; 4096]);
        }
    }
    Ok(())
}

/// A copy, because the initramfs is given up, and not on the disk, because that is the user's.
fn copy_agent() -> Result<(), BootError> {
    let target = in_new_root(AGENT);
    if let Some(directory) = target.parent() {
        make_directory(directory)?;
    }
    let copy = || -> io::Result<u64> {
        let mut from = File::open("/init")?;
        let mut to = File::options().write(true).create(true).truncate(true).mode(0o755).open(&target)?;
        io::copy(&mut from, &mut to)
    };
    copy().map(drop).doing(format_args!("copying the agent to {AGENT}"))
}

/// The initramfs stays in memory below the new root for ever; what is in it need not.
fn free_initramfs() {
    let _ = fs::remove_file("/init");
    let _ = fs::remove_file(MODULES_LIST);
    let _ = fs::remove_dir_all("/modules");
}

fn switch_root() -> Result<(), BootError> {
    chdir(NEW_ROOT).doing("entering the new root")?;
    mount_move(".", "/").doing("moving the new root over the old one")?;
    chroot(".").doing("changing the root")?;
    chdir("/").doing("entering /")
}

fn in_new_root(path: &str) -> PathBuf {
    Path::new(NEW_ROOT).join(path.trim_start_matches('/'))
}

//! Stage 2: PID 1 of the template's root file system.

use std::{
    fmt::Write as _,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{Resource, Rlimit, setrlimit},
    rand::{GetRandomFlags, getrandom},
};
use tokio::net::TcpListener;
use torpor_envd_api::ENVD_PORT;

use super::{BootError, Doing, make_directory, mounts, network, power};
use crate::{
    process::{Processes, Reaper},
    server,
    state::{AgentOptions, AgentState},
};

const DEFAULT_HOST_NAME: &str = "torpor";
const MACHINE_ID: &str = "/etc/machine-id";
/// The most descriptors the agent may hold open, and the most its processes can ask for.
const OPEN_FILES: u64 = 1 << 20;
/// The agent is the last to go when memory is short: without it nobody could tell what happened.
const OOM_SCORE_ADJ: &str = "-1000";

/// Sets up the machine and serves until it is to end.
pub fn run() -> Result<(), BootError> {
    set_up()?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().doing("starting the runtime")?;
    runtime.block_on(serve())
}

async fn serve() -> Result<(), BootError> {
    let options = AgentOptions { init_from_anywhere: false, owns_machine: true };
    let reaper = Reaper::run().doing("listening for ended processes")?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, ENVD_PORT));
    let listener = TcpListener::bind(address).await.doing(format_args!("listening on {address}"))?;
    let router = server::router(AgentState::new(options), Processes::new(reaper));
    tokio::select! {
        served = server::serve(listener, router) => served.doing("serving"),
        () = power::asked_to_end() => {
            power::end().await;
            Ok(())
        }
    }
}

/// Everything that has to be there before the first process of the sandbox. What is only a comfort may fail.
fn set_up() -> Result<(), BootError> {
    for late in &mounts::LATE {
        comfort(late.mount());
    }
    comfort(make_links());
    comfort(make_shared_directories());
    comfort(set_host_name());
    comfort(make_machine_id());
    comfort(raise_limits());
    comfort(network::write_resolv_conf());
    network::bring_up()
}

fn comfort(result: Result<(), BootError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "boot");
    }
}

/// Names in `/dev` that the kernel leaves to user space.
fn make_links() -> Result<(), BootError> {
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/core", "/proc/kcore"),
    ] {
        match symlink(target, name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.doing(format_args!("linking {name}"))?,
        }
    }
    Ok(())
}

/// What everybody may use: directories, and the devices that udev would open to all.
fn make_shared_directories() -> Result<(), BootError> {
    for path in ["/tmp", "/run/lock"].map(Path::new) {
        make_directory(path)?;
        let everybody = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(path, everybody)
            .doing(format_args!("opening {} to everybody", path.display()))?;
    }
    Ok(())
}

fn set_host_name() -> Result<(), BootError> {
    let name = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or(DEFAULT_HOST_NAME);
    rustix::system::sethostname(name.as_bytes()).doing("setting the host name")
}

/// Templates are built without, so that each gets its own.
fn make_machine_id() -> Result<(), BootError> {
    if fs::metadata(MACHINE_ID).is_ok_and(|file| file.len() > 1) {
        return Ok(());
    }
    let mut bytes = [0_u8; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).doing("reading random bytes")?;
    let mut text = bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    text.push('\n');
    fs::write(MACHINE_ID, text).doing(format_args!("writing {MACHINE_ID}"))
}

fn raise_limits() -> Result<(), BootError> {
    fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ).doing("protecting the agent from the OOM killer")?;
    // What was read of the agent stays where it is: it answers as quickly in a guest that is short of memory, and where that is
    // emulated its code is known to machines that have rehearsed it.
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(all).doing("keeping the agent in memory")?;
    // Ping without privileges, as under systemd.
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").doing("permitting ping")?;
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, limit).doing("raising the limit of open files")
}

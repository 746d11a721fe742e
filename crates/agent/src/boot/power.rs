//! Ending the machine in order, when it is asked to.

use std::time::Duration;

use rustix::{
    mount::{MountFlags, mount_remount},
    process::{Pid, Signal, kill_process},
    system::{RebootCommand, reboot},
};
use tokio::signal::unix::{SignalKind, signal};

/// How long processes may take to end themselves.
const GRACE: Duration = Duration::from_secs(3);

/// Returns when somebody asks PID 1 to end the machine, with a signal that any init understands.
pub(super) async fn asked_to_end() {
    let mut signals = Vec::new();
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::user_defined2(),
        SignalKind::from_raw(30),
    ] {
        match signal(kind) {
            Ok(listener) => signals.push(listener),
            Err(error) => tracing::warn!(%error, "cannot listen for signal {}", kind.as_raw_value()),
        }
    }
    if signals.is_empty() {
        return std::future::pending().await;
    }
    futures::future::select_all(signals.iter_mut().map(|listener| Box::pin(listener.recv()))).await;
}

/// Ends all processes, makes the disk safe and stops the machine.
pub(super) async fn end() {
    everybody(Signal::TERM);
    tokio::time::sleep(GRACE).await;
    everybody(Signal::KILL);
    rustix::fs::sync();
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, c"") {
        tracing::warn!(%error, "cannot make the disk read-only; its journal will be replayed");
    }
    rustix::fs::sync();
    // The host starts machines so that a reset ends them; small machine types cannot power off.
    if let Err(error) = reboot(RebootCommand::Restart) {
        tracing::error!(%error, "cannot end the machine");
    }
}

/// Signals every process but this one.
fn everybody(signal: Signal) {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    for pid in pids.filter(|pid| !pid.is_init()) {
        // Kernel threads and those just gone do not mind.
        let _ = kill_process(pid, signal);
    }
}

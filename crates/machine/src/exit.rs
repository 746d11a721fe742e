//! A machine's process: who it is, whether it lives, its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use crate::async_fd::async_fd;

/// How long a killed process may take to vanish; freeing its memory takes time.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// A process, held by a descriptor, so that its number can never mean another one.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    start_ticks: u64,
    pidfd: OwnedFd,
    ended: watch::Receiver<bool>,
}

// === impl Process ===

impl Process {
    /// Holds a child of ours, and reaps it when it ends.
    pub(crate) fn of_child(child: Child) -> io::Result<Self> {
        Self::watch(child.id(), Some(child))
    }

    /// Holds a process that an earlier server started; `None` if the number is another's by now or nobody's.
    pub(crate) fn find(pid: u32, start_ticks: u64) -> Option<Self> {
        let found = Self::watch(pid, None).ok()?;
        // Compared while the descriptor is held: the number cannot change hands any more.
        (found.start_ticks == start_ticks && !found.has_ended()).then_some(found)
    }

    fn watch(pid: u32, child: Option<Child>) -> io::Result<Self> {
        let number = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let start_ticks = start_ticks(pid)?;
        let (sender, ended) = watch::channel(false);
        let waiting = async_fd(pidfd.try_clone()?)?;
        tokio::spawn(async move {
            // A pidfd is readable once its process has ended.
            if let Err(error) = waiting.readable().await {
                tracing::error!(%error, pid, "the end of a process cannot be waited for");
                return;
            }
            if let Some(mut child) = child {
                // Reaps it; it has ended, so this does not block.
                let _ = child.wait();
            }
            sender.send_replace(true);
        });
        Ok(Self { pid, start_ticks, pidfd, ended })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks since the host did: with the number, who it is.
    pub(crate) fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Resolves when it has ended.
    pub(crate) async fn ended(&self) {
        // An error means that the watching task is gone, with the runtime.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Ends it without waiting.
    pub(crate) fn kill_now(&self) {
        // The only error is that it has ended already.
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }

    /// Ends it, and waits until it is gone with its memory.
    pub(crate) async fn kill(&self) {
        self.kill_now();
        if tokio::time::timeout(KILL_LIMIT, self.ended()).await.is_err() {
            tracing::error!(pid = self.pid, "a killed process is still there after {KILL_LIMIT:?}");
        }
    }
}

/// Field 22 of `/proc/PID/stat`.
fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, field 2, is in parentheses and may hold anything.
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks = after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    ticks.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn a_process_is_found_by_number_and_start_and_by_no_other_start() {
        let process = Process::of_child(Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
        assert!(Process::find(process.pid(), process.start_ticks()).is_some());
        assert!(Process::find(process.pid(), process.start_ticks() + 1).is_none());
        process.kill().await;
        assert!(process.has_ended());
        assert!(Process::find(process.pid(), process.start_ticks()).is_none());
    }
}

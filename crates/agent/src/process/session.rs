//! Signalling a whole session.
//!
//! An interactive shell puts each job into a process group of its own, so a signal to the shell's group spares them.
//! The kernel has no call for sessions; this looks through `/proc`.

use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How often to look again for processes that were forked meanwhile.
const ROUNDS: usize = 8;

/// Sends a signal to every process of the session that `leader` leads. Only meaningful while the leader has not
/// been waited for, since its id names the session.
pub(super) fn signal(leader: Pid, signal: Signal) {
    let mut done = Vec::new();
    for _ in 0..ROUNDS {
        let before = done.len();
        for pid in processes() {
            if !done.contains(&pid) && signal_member(pid, leader, signal) {
                done.push(pid);
            }
        }
        if done.len() == before {
            return;
        }
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

fn signal_member(pid: Pid, leader: Pid, signal: Signal) -> bool {
    // The descriptor is opened before the session is read, so that both are about the same process even if its
    // id is given to another in between.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    session_of(pid) == Some(leader) && pidfd_send_signal(&process, signal).is_ok()
}

fn session_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    parse_session(&stat)
}

/// The sixth field; the second may contain anything, in parentheses.
fn parse_session(stat: &str) -> Option<Pid> {
    let (_, rest) = stat.rsplit_once(')')?;
    Pid::from_raw(rest.split_whitespace().nth(3)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_found_behind_any_name() {
        assert_eq!(parse_session("12 (a) b) (c) S 1 12 7 0 -1"), Pid::from_raw(7));
        assert_eq!(parse_session("12 (a"), None);
    }
}

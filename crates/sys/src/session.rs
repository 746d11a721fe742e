//! Starting a process that does not share its parent's fate.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the command start in a session of its own: signals meant for this process's terminal or process group
/// (Ctrl-C, hang-up) do not reach it.
pub fn in_new_session(command: &mut Command) -> &mut Command {
    // SAFETY: setsid is a plain system call and safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        })
    }
}

/// Makes the command start inside control groups, given as their `cgroup.procs` files opened for writing: it is never
/// outside of them, not even for a moment.
pub fn in_cgroups(command: &mut Command, cgroup_procs: Vec<OwnedFd>) -> &mut Command {
    // SAFETY: write is a plain system call and safe between fork and exec; nothing is allocated or locked.
    unsafe { command.pre_exec(move || cgroup_procs.iter().try_for_each(|file| join(file.as_fd()))) }
}

fn join(cgroup_procs: impl AsFd) -> io::Result<()> {
    // 0 is the process that writes.
    rustix::io::write(cgroup_procs, b"0")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_started_so_leads_its_own_session() {
        let mut child = in_new_session(Command::new("sleep").arg("60")).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let session = rustix::process::getsid(Some(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(session, Ok(pid));
    }
}

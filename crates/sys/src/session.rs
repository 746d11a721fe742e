//! Starting a process that does not share its parent's fate.

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

//! Starting a process as another user, in a session of its own.
//!
//! The standard library can set user and group but not supplementary groups, and nothing of a terminal, so this
//! does all of it between fork and exec. Only system calls happen there, on memory prepared before the fork.

use std::{
    ffi::{CString, OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Resource, Rlimit},
    thread::{Gid, Uid},
};

/// What to start, and as whom.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// A path, or a name looked up in the `PATH` of `environment`.
    pub program: &'a OsStr,
    /// Its arguments without the program itself.
    pub arguments: &'a [OsString],
    /// Its whole environment.
    pub environment: &'a [(OsString, OsString)],
    /// Its working directory; entered with the new user's rights.
    pub directory: &'a Path,
    /// User, group and all group ids; `None` to stay who the caller is.
    pub identity: Option<Identity<'a>>,
    /// The three standard streams.
    pub streams: [OwnedFd; 3],
    /// Whether the first stream is a terminal that becomes the session's controlling one.
    pub terminal: bool,
    /// The kernel's willingness to kill it when memory is short: -1000…1000.
    pub oom_score_adj: i16,
    /// Soft limit of open files; `None` to inherit the caller's.
    pub open_files: Option<u64>,
}

/// As whom a process runs.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All group ids.
    pub groups: &'a [u32],
}

/// Starts the process as leader of a new session and process group, and returns its id. The caller reaps it.
///
/// Returns when the program runs; the errors of every step up to there, exec included, are returned here.
pub fn spawn(spawn: Spawn<'_>) -> io::Result<Pid> {
    let [stdin, stdout, stderr] = spawn.streams;
    let mut command = Command::new(spawn.program);
    command
        .args(spawn.arguments)
        .env_clear()
        .envs(spawn.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr));
    let directory = CString::new(spawn.directory.as_os_str().as_bytes())?;
    let oom_score_adj = spawn.oom_score_adj.to_string();
    let groups: Vec<Gid> =
        spawn.identity.iter().flat_map(|it| it.groups).map(|gid| Gid::from_raw(*gid)).collect();
    let ids = spawn.identity.map(|it| (Uid::from_raw(it.uid), Gid::from_raw(it.gid)));
    let terminal = spawn.terminal;
    let open_files = spawn.open_files;
    let in_child = move || -> io::Result<()> {
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin().as_fd())?;
        }
        set_oom_score_adj(oom_score_adj.as_bytes());
        if let Some(current) = open_files {
            let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
            let current = Some(maximum.map_or(current, |maximum| maximum.min(current)));
            rustix::process::setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
        }
        if let Some((uid, gid)) = ids {
            // The calling thread is the child's only one, so these change the whole process.
            rustix::thread::set_thread_groups(&groups)?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        rustix::process::chdir(directory.as_c_str())?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes system calls
    // through rustix, which does not allocate for them, and reads memory that was allocated before.
    unsafe { command.pre_exec(in_child) };
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("the kernel returned no process id"))
}

/// Best effort: lowering the score needs a privilege that a test may not have.
fn set_oom_score_adj(text: &[u8]) {
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(file) = file {
        let _ = rustix::io::write(&file, text);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::*;

    fn null() -> OwnedFd {
        File::options().read(true).write(true).open("/dev/null").unwrap().into()
    }

    fn output_of(program: &str, arguments: &[&str], directory: &str) -> io::Result<String> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
        let pid = spawn(Spawn {
            program: program.as_ref(),
            arguments: &arguments,
            environment: &[("PATH".into(), "/bin:/usr/bin".into()), ("A".into(), "b c".into())],
            directory: directory.as_ref(),
            identity: None,
            streams: [null(), write, null()],
            terminal: false,
            oom_score_adj: 0,
            open_files: Some(64),
        })?;
        let mut text = String::new();
        File::from(read).read_to_string(&mut text)?;
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
        Ok(text)
    }

    #[test]
    fn a_process_gets_directory_environment_and_limits() {
        let text = output_of("sh", &["-c", "pwd; echo $A; ulimit -n"], "/usr/bin").unwrap();
        assert_eq!(text, "/usr/bin\nb c\n64\n");
    }

    #[test]
    fn a_process_leads_its_own_session() {
        let text = output_of(
            "sh",
            &["-c", "read -r _ _ _ _ group session _ < /proc/self/stat; echo $group $session $$"],
            "/",
        )
        .unwrap();
        let ids: Vec<&str> = text.split_whitespace().collect();
        assert_eq!((ids[0], ids[1]), (ids[2], ids[2]));
    }

    #[test]
    fn what_cannot_be_started_is_reported_at_once() {
        let missing = output_of("no-such-program", &[], "/").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(output_of("true", &[], "/no/such/directory").is_err());
    }
}

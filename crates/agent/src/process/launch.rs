//! From a request to a running process.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use connectrpc::ConnectError;
use rustix::{fs::OFlags, pipe::PipeFlags, process::geteuid};
use tokio::{io::unix::AsyncFd, sync::oneshot};
use torpor_envd_api::{process::StartRequest, telemetry::LogLevel};
use torpor_sys::spawn::{Identity, Spawn, spawn};

use super::{
    Processes,
    end::End,
    feed::{Channel, Subscription},
    input::{Input, Pipe},
    pump::Pump,
    registry::Process,
    terminal,
};
use crate::{
    paths,
    state::AgentState,
    telemetry::{Journal, Lines, Open},
    users::User,
};

/// Where programs are looked for; clients can give another.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Processes of the sandbox go first when memory is short, before what the template runs, and the agent last.
const OOM_SCORE_ADJ: i16 = 100;

/// Soft limit of open files of processes in a guest. High enough for servers, low enough for programs that close
/// every possible descriptor when they start.
const OPEN_FILES: u64 = 65_536;

/// Characters of a command line that are logged.
const LOGGED_COMMAND_CHARS: usize = 120;

/// Everything that is known before the process exists.
pub(super) struct Plan {
    request: StartRequest,
    user: User,
    directory: PathBuf,
    environment: Vec<(OsString, OsString)>,
    open_files: Option<u64>,
    deadline: Option<Instant>,
    journal: Arc<Journal>,
}

/// The agent's ends of a process's streams.
struct Ends {
    input: Input,
    outputs: Vec<(Channel, Arc<AsyncFd<OwnedFd>>)>,
}

// === impl Plan ===

impl Plan {
    /// Checks a request and works out what it leaves open.
    pub(super) fn new(
        state: &AgentState,
        user: User,
        request: StartRequest,
        deadline: Option<Instant>,
    ) -> Result<Self, ConnectError> {
        if request.process.cmd.is_empty() {
            return Err(ConnectError::invalid_argument("no command is given: set process.cmd"));
        }
        let settings = state.settings();
        let asked = request.process.cwd.as_deref().unwrap_or("");
        let directory = paths::resolve(asked, &user, settings.default_workdir.as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
        check_directory(&directory)?;
        let environment = environment(&user, settings.global_envs(), &request);
        let open_files = state.options().owns_machine.then_some(OPEN_FILES);
        let journal = state.journal().clone();
        Ok(Self { request, user, directory, environment, open_files, deadline, journal })
    }

    /// Starts the process and everything that looks after it.
    pub(super) async fn launch(
        self,
        processes: Arc<Processes>,
    ) -> Result<(Arc<Process>, Subscription), ConnectError> {
        // In a task of its own, so that a client that leaves now does not leave a process nobody looks after.
        let launched = tokio::spawn(self.run(processes)).await;
        launched.map_err(|error| ConnectError::internal(format!("starting the process failed: {error}")))?
    }

    async fn run(self, processes: Arc<Processes>) -> Result<(Arc<Process>, Subscription), ConnectError> {
        let Self { request, user, directory, environment, open_files, deadline, journal } = self;
        let describe = {
            let command = request.process.cmd.clone();
            move |error: io::Error| {
                ConnectError::invalid_argument(format!("error starting process '{command}': {error}"))
            }
        };
        let (streams, ends) = streams(&request, &user).map_err(&describe)?;
        let config = request.process.clone();
        let program = OsString::from(config.cmd.clone());
        let arguments: Vec<OsString> = config.args.iter().map(OsString::from).collect();
        let terminal = request.pty.is_set();
        let reaper = processes.reaper.clone();
        // Blocks until the program is loaded, which may need the disk.
        let started = tokio::task::spawn_blocking(move || {
            let identity = Identity { uid: user.uid, gid: user.gid, groups: &user.groups };
            let stay = !geteuid().is_root() && geteuid().as_raw() == user.uid;
            reaper.start(|| {
                spawn(Spawn {
                    program: &program,
                    arguments: &arguments,
                    environment: &environment,
                    directory: &directory,
                    identity: (!stay).then_some(identity),
                    streams,
                    terminal,
                    oom_score_adj: OOM_SCORE_ADJ,
                    open_files,
                })
            })
        });
        let started = started.await.map_err(|error| describe(io::Error::other(error)))?;
        let (pid, end) = started.map_err(&describe)?;
        let config = config.into_option().unwrap_or_default();
        let process = Process::new(pid, config, request.tag, ends.input);
        tracing::debug!(pid = process.pid(), command = process.config.cmd, "process started");
        let subscription = process.feed.subscribe();
        processes.insert(process.clone());
        journal.event("process started", log_fields(&process));
        let open = journal.work().begin();
        tokio::spawn(look_after(processes, process.clone(), ends.outputs, end, deadline, journal, open));
        Ok((process, subscription))
    }
}

/// Follows a process to its end.
async fn look_after(
    processes: Arc<Processes>,
    process: Arc<Process>,
    outputs: Vec<(Channel, Arc<AsyncFd<OwnedFd>>)>,
    end: oneshot::Receiver<End>,
    deadline: Option<Instant>,
    journal: Arc<Journal>,
    open: Open,
) {
    let mut pumps = tokio::task::JoinSet::new();
    for (channel, source) in outputs {
        let (level, stream) = match channel {
            Channel::Stdout => (LogLevel::Info, "stdout"),
            Channel::Stderr => (LogLevel::Error, "stderr"),
            Channel::Terminal => (LogLevel::Info, "pty"),
        };
        let mut fields = log_fields(&process);
        fields.insert("stream".to_owned(), stream.to_owned());
        let lines = Lines::new(journal.clone(), level, fields);
        let exited = process.exited.subscribe();
        let pump = Pump { source, channel, feed: process.feed.clone(), lines, exited };
        pumps.spawn(pump.run());
    }
    if let Some(deadline) = deadline {
        tokio::spawn(time_out(processes.clone(), process.clone(), deadline));
    }
    // The reaper tells every owner, and lives as long as the agent.
    let end = end.await.unwrap_or(End::Exited(-1));
    process.exited.send_replace(true);
    drop(open);
    process.input.abandon();
    while pumps.join_next().await.is_some() {}
    tracing::debug!(pid = process.pid(), %end, "process ended");
    journal.event(format!("process ended: {end}"), log_fields(&process));
    process.feed.close(end);
    processes.forget_later(process);
}

/// Which process a log entry is about. Of a long command line only the beginning, enough to recognise it.
fn log_fields(process: &Process) -> BTreeMap<String, String> {
    let words = std::iter::once(&process.config.cmd).chain(&process.config.args);
    let line = words.map(String::as_str).collect::<Vec<_>>().join(" ");
    let shown = line.chars().take(LOGGED_COMMAND_CHARS).collect();
    BTreeMap::from([("pid".to_owned(), process.pid().to_string()), ("cmd".to_owned(), shown)])
}

/// Kills the process at its deadline unless it ends before. The deadline is on the monotonic clock, which stands
/// still while the machine is paused.
async fn time_out(processes: Arc<Processes>, process: Arc<Process>, deadline: Instant) {
    let mut exited = process.exited.subscribe();
    tokio::select! {
        _ = exited.wait_for(|exited| *exited) => {}
        () = tokio::time::sleep_until(deadline.into()) => processes.time_out(&process),
    }
}

fn check_directory(directory: &Path) -> Result<(), ConnectError> {
    let shown = directory.display();
    match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(ConnectError::invalid_argument(format!("cwd '{shown}' is not a directory"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(ConnectError::invalid_argument(format!("cwd '{shown}' does not exist")))
        }
        Err(error) => Err(ConnectError::invalid_argument(format!("cwd '{shown}' cannot be used: {error}"))),
    }
}

/// Later ones win: who the user is, the sandbox's variables, the request's.
fn environment(
    user: &User,
    global: BTreeMap<String, String>,
    request: &StartRequest,
) -> Vec<(OsString, OsString)> {
    let mut environment = BTreeMap::<OsString, OsString>::from([
        ("PATH".into(), PATH.into()),
        ("HOME".into(), user.home.clone().into()),
        ("USER".into(), user.name.clone().into()),
        ("LOGNAME".into(), user.name.clone().into()),
    ]);
    environment.extend(global.into_iter().map(|(name, value)| (name.into(), value.into())));
    let asked = request.process.envs.iter();
    environment.extend(asked.map(|(name, value)| (name.into(), value.into())));
    environment.into_iter().collect()
}

/// Opens the process's three streams and the agent's ends of them.
fn streams(request: &StartRequest, user: &User) -> io::Result<([OwnedFd; 3], Ends)> {
    if let Some(pty) = request.pty.as_option() {
        let owner = geteuid().is_root().then_some(user.uid);
        let terminal = terminal::open(pty, owner)?;
        let controller = Arc::new(watched(terminal.controller)?);
        let streams = [terminal.user.try_clone()?, terminal.user.try_clone()?, terminal.user];
        let outputs = vec![(Channel::Terminal, controller.clone())];
        return Ok((streams, Ends { input: Input::Terminal(controller), outputs }));
    }
    let (stdin, input) = match request.stdin.unwrap_or(true) {
        true => {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(nonblocking(write)?))
        }
        false => (File::open("/dev/null")?.into(), None),
    };
    let (stdout, stdout_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, stderr_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let outputs = vec![
        (Channel::Stdout, Arc::new(nonblocking(stdout)?)),
        (Channel::Stderr, Arc::new(nonblocking(stderr)?)),
    ];
    let input = Input::Pipe(Pipe::new(input));
    Ok(([stdin, stdout_write, stderr_write], Ends { input, outputs }))
}

/// Makes the agent's end of a pipe non-blocking; the process's end is another file description and stays as it is.
fn nonblocking(end: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&end)?;
    rustix::fs::fcntl_setfl(&end, flags | OFlags::NONBLOCK)?;
    watched(end)
}

/// Registers a descriptor with the runtime.
fn watched(end: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // Deprecated in favour of an unsafe function that has the caller promise that the object's descriptor stays the
    // same and open. An `OwnedFd`'s does.
    #[allow(deprecated)]
    AsyncFd::new(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use torpor_envd_api::process::ProcessConfig;

    #[test]
    fn the_requests_variables_win_over_the_sandboxs_and_those_over_the_users() {
        let user = User { name: "u".into(), uid: 1, gid: 1, groups: vec![1], home: "/home/u".into() };
        let envs = [("A".to_owned(), "request".to_owned())];
        let request = StartRequest {
            process: ProcessConfig { envs: envs.into_iter().collect(), ..Default::default() }.into(),
            ..Default::default()
        };
        let global = [("A", "global"), ("HOME", "/elsewhere")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let environment: BTreeMap<_, _> = environment(&user, global.into(), &request).into_iter().collect();
        let get = |name: &str| environment[&OsString::from(name)].to_str().unwrap().to_owned();
        assert_eq!(
            (get("A"), get("HOME"), get("USER"), get("PATH")),
            ("request".into(), "/elsewhere".into(), "u".into(), PATH.into())
        );
    }
}

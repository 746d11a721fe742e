//! The server under torture, or in a bench: a process of its own, so that it can be killed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use hyper::Method;
use tokio::process::{Child, Command};
use torpor_control::keys;

use crate::layout::DataDir;
use crate::link::Link;

/// How long a server may take to answer its first request.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take to end when it is told to.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The server cannot be started or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// The process.
    #[error("the server's process: {0}")]
    Process(#[from] std::io::Error),
    /// It ended by itself.
    #[error("the server ended by itself ({status}); its log: {}", .log.display())]
    Ended { status: std::process::ExitStatus, log: PathBuf },
    /// It does not answer.
    #[error("the server does not answer within {START_LIMIT:?}; its log: {}", .log.display())]
    Silent { log: PathBuf },
}

/// A server on one data directory. Killed when dropped.
pub(crate) struct Server {
    data_dir: PathBuf,
    log: PathBuf,
    port: u16,
    child: Option<Child>,
}

// === impl Server ===

impl Server {
    /// A server that is not started yet, on a port that is free now and stays its own.
    pub(super) fn new(data_dir: &DataDir) -> Result<Server, ServerError> {
        Self::logging_to(data_dir, "torture.log")
    }

    /// As [`Server::new`], with its log in that file of the data directory.
    pub(crate) fn logging_to(data_dir: &DataDir, log: &str) -> Result<Server, ServerError> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let data_dir = data_dir.root().to_owned();
        Ok(Server { log: data_dir.join(log), data_dir, port, child: None })
    }

    /// Where its log goes.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Starts it, and waits until it answers. Says how long that took.
    pub(crate) async fn start(&mut self) -> Result<Duration, ServerError> {
        self.start_with(None).await
    }

    /// As [`Server::start`], to abort at a step if one is named.
    pub(super) async fn start_with(&mut self, step: Option<&str>) -> Result<Duration, ServerError> {
        let begun = Instant::now();
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(std::env::current_exe()?)
            .args(["serve", "--warm-machines", "1", "--listen", &format!("127.0.0.1:{}", self.port)])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .envs(step.map(|step| (torpor_vault::interruption::VARIABLE, step)))
            .kill_on_drop(true)
            .spawn()?;
        let child = self.child.insert(child);
        let probe = Link::new(format!("http://127.0.0.1:{}", self.port), String::new());
        while begun.elapsed() < START_LIMIT {
            if let Some(status) = child.try_wait()? {
                return Err(ServerError::Ended { status, log: self.log.clone() });
            }
            if probe.call(Method::GET, "/health", None).await.is_ok_and(|answer| answer.is_success()) {
                return Ok(begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(ServerError::Silent { log: self.log.clone() })
    }

    /// The way to it, by the key in its data directory.
    pub(super) fn api(&self) -> Result<Link, ServerError> {
        let (url, key) = self.endpoint()?;
        Ok(Link::new(url, key))
    }

    /// Its URL, and the key in its data directory.
    pub(crate) fn endpoint(&self) -> Result<(String, String), ServerError> {
        let key = keys::read_cli_key(Path::new(&self.data_dir))?;
        Ok((format!("http://127.0.0.1:{}", self.port), key.reveal().to_owned()))
    }

    /// Its process; `None` while it does not run.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// `kill -9`: nothing of its own gets to run.
    pub(crate) async fn kill(&mut self) -> Result<(), ServerError> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Waits until it has aborted. False if it does not.
    #[cfg(feature = "interruptions")]
    pub(super) async fn aborted(&mut self) -> Result<bool, ServerError> {
        use std::os::unix::process::ExitStatusExt;
        let Some(child) = &mut self.child else { return Ok(false) };
        let Ok(status) = tokio::time::timeout(STOP_LIMIT, child.wait()).await else { return Ok(false) };
        self.child = None;
        Ok(status?.signal() == Some(rustix::process::Signal::ABORT.as_raw()))
    }

    /// As a service manager would: told to end, and killed if it does not.
    pub(crate) async fn stop(&mut self) -> Result<(), ServerError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .map_err(std::io::Error::from)?;
        }
        if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
            child.kill().await?;
        }
        Ok(())
    }
}

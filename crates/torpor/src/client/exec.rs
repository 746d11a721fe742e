//! `torpor sandbox exec`: one program, its output here, its exit code ours.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use torpor_envd_api::process::Signal;

use super::ClientError;
use super::api::Api;
use super::process::{Event, Input, Program};
use super::sandbox::Pair;
use super::terminal::read_stdin;

/// What to run, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Id of the sandbox
    id: String,
    /// Linux user in the sandbox [default: the template's, usually `user`]
    #[arg(long, short)]
    user: Option<String>,
    /// Working directory in the sandbox [default: the user's home]
    #[arg(long, short)]
    cwd: Option<String>,
    /// Environment variable; may be given several times
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<Pair>,
    /// Kill the program after this many seconds [default: never]
    #[arg(long, short)]
    timeout: Option<u64>,
    /// Give the program an empty standard input even if there is one here
    #[arg(long, short)]
    no_stdin: bool,
    /// The program and its arguments. For pipes and variables: bash -c 'echo $HOME | wc'
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

// === impl Exec ===

impl Exec {
    /// Runs it and returns the code to exit with.
    pub(super) async fn run(self, api: &Api) -> Result<u8, ClientError> {
        let sandbox = api.running_sandbox(&self.id).await?;
        let has_input = !self.no_stdin && !io::stdin().is_terminal();
        let mut command = self.command.into_iter();
        let program = Program {
            command: command.next().unwrap_or_default(),
            args: command.collect(),
            envs: self.env.into_iter().map(|Pair(name, value)| (name, value)).collect(),
            cwd: self.cwd,
            stdin: has_input,
            terminal: None,
            user: self.user,
            timeout: self.timeout.map(Duration::from_secs),
        };
        let mut running = program.start(api, &sandbox).await?;
        let feeding = has_input.then(|| tokio::spawn(feed(running.input(), read_stdin())));
        let interrupts = tokio::spawn(pass_interrupts(running.input()));
        let ended = loop {
            match running.next().await {
                Ok(Event::Out(bytes)) => write(&mut io::stdout().lock(), &bytes)?,
                Ok(Event::Err(bytes)) => write(&mut io::stderr().lock(), &bytes)?,
                Ok(Event::End(ended)) => break Ok(ended),
                Err(error) => break Err(error),
            }
        };
        interrupts.abort();
        if let Some(feeding) = feeding {
            feeding.abort();
        }
        Ok(ended?.exit_code())
    }
}

/// A program that no longer reads is no error: `head` ends before its input does.
async fn feed(input: Input, mut chunks: mpsc::Receiver<Vec<u8>>) {
    while let Some(chunk) = chunks.recv().await {
        if let Err(error) = input.send(chunk).await {
            tracing::debug!(%error, "the program takes no more input");
            return;
        }
    }
    if let Err(error) = input.close().await {
        tracing::debug!(%error, "the program's input cannot be closed");
    }
}

/// The first Ctrl-C asks the program to end, the next one kills it.
async fn pass_interrupts(input: Input) {
    let Ok(mut interrupts) = signal(SignalKind::interrupt()) else { return };
    let mut next = Signal::SIGNAL_SIGTERM;
    while interrupts.recv().await.is_some() {
        if let Err(error) = input.signal(next).await {
            tracing::debug!(%error, "the signal was not passed on");
        }
        next = Signal::SIGNAL_SIGKILL;
    }
}

pub(super) fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), ClientError> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .map_err(|source| ClientError::Io { what: "cannot write the program's output", source })
}

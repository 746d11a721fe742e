//! `torpor sandbox shell`: a terminal in the sandbox.

use std::collections::HashMap;
use std::io::{self, IsTerminal};

use tokio::signal::unix::{SignalKind, signal};

use super::ClientError;
use super::api::Api;
use super::exec::write;
use super::process::{Event, Program, Running};
use super::terminal::{RawMode, read_stdin, size};

/// Where, and as whom.
#[derive(Debug, clap::Args)]
pub(super) struct Shell {
    /// Id of the sandbox
    id: String,
    /// Linux user in the sandbox [default: the template's, usually `user`]
    #[arg(long, short)]
    user: Option<String>,
    /// Working directory in the sandbox [default: the user's home]
    #[arg(long, short)]
    cwd: Option<String>,
}

// === impl Shell ===

impl Shell {
    /// Runs it and returns the code to exit with.
    pub(super) async fn run(self, api: &Api) -> Result<u8, ClientError> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Err(ClientError::NoTerminal);
        }
        let sandbox = api.running_sandbox(&self.id).await?;
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".to_owned());
        let envs = [("TERM", term.as_str()), ("LANG", "C.UTF-8"), ("LC_ALL", "C.UTF-8")];
        let program = Program {
            command: "/bin/bash".to_owned(),
            args: vec!["-i".to_owned(), "-l".to_owned()],
            envs: HashMap::from(envs.map(|(name, value)| (name.to_owned(), value.to_owned()))),
            cwd: self.cwd,
            stdin: true,
            terminal: Some(size()),
            user: self.user,
            timeout: None,
        };
        let running = program.start(api, &sandbox).await?;
        let raw =
            RawMode::enter().map_err(|source| ClientError::Io { what: "cannot use the terminal", source })?;
        let ended = attend(running).await;
        drop(raw);
        ended
    }
}

/// Carries keys in and characters out until the shell ends.
async fn attend(mut running: Running) -> Result<u8, ClientError> {
    let input = running.input();
    let mut keys = read_stdin();
    let mut resizes = signal(SignalKind::window_change())
        .map_err(|source| ClientError::Io { what: "cannot follow the terminal's size", source })?;
    // Keys go their own way, so that output is shown while they travel.
    let typing = tokio::spawn({
        let input = input.clone();
        async move {
            while let Some(bytes) = keys.recv().await {
                if input.send(bytes).await.is_err() {
                    return;
                }
            }
        }
    });
    let ended = loop {
        tokio::select! {
            event = running.next() => match event {
                Ok(Event::Out(bytes) | Event::Err(bytes)) => write(&mut io::stdout().lock(), &bytes)?,
                Ok(Event::End(ended)) => break Ok(ended.exit_code()),
                Err(error) => break Err(error),
            },
            Some(()) = resizes.recv() => {
                if let Err(error) = input.resize(size()).await {
                    tracing::debug!(%error, "the new size was not passed on");
                }
            }
        }
    };
    typing.abort();
    ended
}

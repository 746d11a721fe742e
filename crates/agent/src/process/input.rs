//! Handing a process its input.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use connectrpc::ConnectError;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};
use torpor_envd_api::process::{ProcessInput, process_input};

/// Where a process reads from.
#[derive(Debug)]
pub(super) enum Input {
    /// A pipe, until it is closed.
    Pipe(Pipe),
    /// A terminal.
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

/// The writing end of a pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    end: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
}

/// Why input could not be handed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// The process was started without, or it was closed, or the process reads no more.
    #[error("stdin not enabled or closed")]
    Closed,
    /// Standard input for a process with a terminal.
    #[error("tty assigned to process — input should be written to the pty, not the stdin")]
    WantsTerminal,
    /// Terminal input for a process without.
    #[error("tty not assigned to process — input should be written to the stdin, not the tty")]
    NoTerminal,
    /// Closing the input of a process with a terminal.
    #[error("cannot close stdin for PTY process — send Ctrl+D (0x04) instead")]
    CannotClose,
    /// The request names neither.
    #[error("the input is empty: give either stdin or pty")]
    Nothing,
    /// The kernel refused.
    #[error("writing to the process failed: {0}")]
    Io(#[from] io::Error),
}

/// Serialises writers of one process, so that the bytes of two requests do not mix.
pub(super) type Turn = tokio::sync::Mutex<()>;

// === impl Input ===

impl Input {
    /// Writes all of it; waits while the process does not read, until it ends.
    pub(super) async fn write(
        &self,
        turn: &Turn,
        input: &ProcessInput,
        mut exited: watch::Receiver<bool>,
    ) -> Result<(), InputError> {
        let (target, bytes) = match (self, &input.input) {
            (Self::Pipe(pipe), Some(process_input::Input::Stdin(bytes))) => {
                (pipe.get().ok_or(InputError::Closed)?, bytes)
            }
            (Self::Terminal(terminal), Some(process_input::Input::Pty(bytes))) => (terminal.clone(), bytes),
            (Self::Terminal(_), Some(process_input::Input::Stdin(_))) => {
                return Err(InputError::WantsTerminal);
            }
            (Self::Pipe(_), Some(process_input::Input::Pty(_))) => return Err(InputError::NoTerminal),
            (_, None) => return Err(InputError::Nothing),
        };
        let _turn = turn.lock().await;
        tokio::select! {
            written = write_all(&target, bytes) => written,
            _ = exited.wait_for(|exited| *exited) => Err(InputError::Closed),
        }
    }

    /// Lets the process read the end of its input. Twice is fine.
    pub(super) async fn close(&self, turn: &Turn) -> Result<(), InputError> {
        match self {
            Self::Pipe(pipe) => {
                // Behind those that are still writing.
                let _turn = turn.lock().await;
                pipe.close();
                Ok(())
            }
            Self::Terminal(_) => Err(InputError::CannotClose),
        }
    }

    /// The terminal, if it is one.
    pub(super) fn terminal(&self) -> Option<&OwnedFd> {
        match self {
            Self::Pipe(_) => None,
            Self::Terminal(terminal) => Some(terminal.get_ref()),
        }
    }

    /// Lets go of the pipe of a process that has ended.
    pub(super) fn abandon(&self) {
        if let Self::Pipe(pipe) = self {
            pipe.close();
        }
    }
}

// === impl Pipe ===

impl Pipe {
    /// A pipe with that writing end, or none for a process that gets no input.
    pub(super) fn new(end: Option<AsyncFd<OwnedFd>>) -> Self {
        Self { end: Mutex::new(end.map(Arc::new)) }
    }

    fn get(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn close(&self) {
        drop(self.end.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

// === impl InputError ===

impl From<InputError> for ConnectError {
    fn from(error: InputError) -> Self {
        match error {
            InputError::Nothing => ConnectError::invalid_argument(error.to_string()),
            InputError::Io(_) => ConnectError::internal(error.to_string()),
            _ => ConnectError::failed_precondition(error.to_string()),
        }
    }
}

async fn write_all(target: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> Result<(), InputError> {
    while !bytes.is_empty() {
        let written =
            target.async_io(Interest::WRITABLE, |fd| rustix::io::write(fd, bytes).map_err(io::Error::from));
        match written.await {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nobody reads any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(InputError::Closed),
            Err(error) => return Err(InputError::Io(error)),
        }
    }
    Ok(())
}

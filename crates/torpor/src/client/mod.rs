//! The commands that talk to a running server, or to the database beside it.
//!
//! `torpor sandbox` and `torpor template` are clients of the REST API and the gateway, as any SDK is; what they can do
//! a user's program can do. `torpor key` and `torpor team` work on the database in the data directory itself, also while
//! the server runs, so that a lost key locks nobody out.

mod api;
mod endpoint;
mod exec;
mod gc;
mod key;
mod process;
mod sandbox;
mod shell;
mod snapshot;
mod table;
mod team;
mod telemetry;
mod template;
mod terminal;

pub(crate) use endpoint::Endpoint;
pub(crate) use gc::GcCommand;
pub(crate) use key::KeyCommand;
pub(crate) use sandbox::SandboxCommand;
pub(crate) use snapshot::SnapshotCommand;
pub(crate) use table::table;
pub(crate) use team::TeamCommand;
pub(crate) use template::TemplateCommand;

/// Exit code of `exec` and `shell` when not the command failed but the way to it.
pub(crate) const EXIT_NOT_RUN: u8 = 125;

/// For the end of `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused or failed; standard error says why and what to do
  2    the command line is wrong
  exec and shell end with the exit code of what ran, 128 + n if signal n ended it, and 125 if it could not be run";

/// A command of a client did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No server answers.
    #[error(
        "no answer from {url}: {why}\nIs a server running there (torpor serve)? Name another with --url or E2B_API_URL"
    )]
    NoAnswer {
        /// The server asked.
        url: String,
        /// The cause.
        why: String,
    },
    /// The server answered with an error.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The server's own words.
        message: String,
    },
    /// The server's answer cannot be read.
    #[error(
        "{what} was answered in a way this torpor does not understand ({why}): is it a Torpor server, and as new as this?"
    )]
    Unreadable {
        /// The request.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// Removing is the server's work, and none answers.
    #[error(
        "no server answers at {url}, and removing is its work ({why}). Start it (torpor serve): it removes what was kept \
         long enough at its start and every hour, by itself"
    )]
    NoCollector {
        /// The server asked.
        url: String,
        /// The cause.
        why: String,
    },
    /// The URL cannot be used.
    #[error("'{url}' cannot be used as the server's URL: {why}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// No API key is at hand.
    #[error(
        "no API key: give one with --api-key or E2B_API_KEY (`torpor key create` on the server's host makes one)\n{why}"
    )]
    NoKey {
        /// Why the key of the data directory does not serve.
        why: String,
    },
    /// The sandbox is paused.
    #[error("the sandbox {0} is paused; `torpor sandbox resume {0}` resumes it")]
    Paused(String),
    /// A program in the sandbox cannot be run or was lost.
    #[error("{0}")]
    Process(String),
    /// `shell` needs a terminal.
    #[error("this needs a terminal; run a single command with `torpor sandbox exec`")]
    NoTerminal,
    /// Reading or writing here failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Registry(#[from] torpor_control::registry::RegistryError),
    /// A key was not made or revoked.
    #[error(transparent)]
    Key(#[from] torpor_control::keys::KeyError),
    /// A team was not made, found or changed.
    #[error(transparent)]
    Team(#[from] torpor_control::teams::TeamError),
    /// Several of the things asked for failed; each was reported.
    #[error("{failed} of {all} failed")]
    Some {
        /// How many.
        failed: usize,
        /// Of how many.
        all: usize,
    },
}

/// The database in `data_dir`, which must be there: a mistyped path must not make a new one.
async fn open_registry(
    data_dir: &std::path::Path,
) -> Result<torpor_control::registry::Registry, ClientError> {
    if !data_dir.is_dir() {
        return Err(ClientError::Io {
            what: "there is no data directory (make one with `torpor setup`, or name it with --data-dir)",
            source: std::io::Error::new(std::io::ErrorKind::NotFound, data_dir.display().to_string()),
        });
    }
    Ok(torpor_control::registry::Registry::open(data_dir).await?)
}

/// Prints one line to standard output. A reader that went away (`| head`) is no error.
pub(crate) fn say(text: &str) -> Result<(), ClientError> {
    use std::io::{ErrorKind, Write};
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(ClientError::Io { what: "cannot write to standard output", source: error })
        }
        _ => Ok(()),
    }
}

/// Prints a value as indented JSON.
pub(crate) fn say_json(value: &impl serde::Serialize) -> Result<(), ClientError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| ClientError::Unreadable { what: "the result".to_owned(), why: error.to_string() })?;
    say(&text)
}

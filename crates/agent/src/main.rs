//! See the crate's documentation for the agent's three lives.

use std::{env, net::SocketAddr, process::ExitCode};

use lexopt::prelude::*;
use tokio::net::TcpListener;
use torpor_agent::{
    boot::{STAGE2, stage1, stage2},
    process::{Processes, Reaper},
    server,
    state::{AgentOptions, AgentState},
};

const USAGE: &str = "usage: torpor-agent serve --listen ADDRESS:PORT [--verbose]";

/// What the command line asks for.
struct Serve {
    listen: SocketAddr,
    verbose: bool,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return boot();
    }
    let serve = match command_line() {
        Ok(serve) => serve,
        Err(error) => {
            eprintln!("torpor-agent: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    log(if serve.verbose { tracing::Level::TRACE } else { tracing::Level::WARN });
    match run(&serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torpor-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// PID 1. When it returns the kernel panics, and the machine ends with the reason on its console.
fn boot() -> ExitCode {
    log(tracing::Level::WARN);
    let result = match env::args_os().nth(1) {
        Some(stage) if stage == STAGE2 => stage2::run(),
        _ => Err(stage1::run()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torpor-agent: the sandbox cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn command_line() -> Result<Serve, lexopt::Error> {
    let (mut listen, mut verbose) = (None, false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Value(command) if command == "serve" => {}
            Long("listen") => listen = Some(parser.value()?.parse()?),
            Long("verbose") => verbose = true,
            other => return Err(other.unexpected()),
        }
    }
    Ok(Serve { listen: listen.ok_or("--listen is missing")?, verbose })
}

/// Warnings and errors go to the standard error, which for PID 1 is the console.
fn log(level: tracing::Level) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
}

/// Serves as an ordinary process, as the same kind of runtime that PID 1 has, and adopts orphans as it does.
fn run(serve: &Serve) -> std::io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(serve.listen).await?;
        println!("listening on {}", listener.local_addr()?);
        let state = AgentState::new(AgentOptions { init_from_anywhere: true, owns_machine: false });
        let processes = Processes::new(Reaper::run()?);
        server::serve(listener, server::router(state, processes)).await
    })
}

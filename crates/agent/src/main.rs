//! See the crate's documentation for the agent's three lives.

use std::{net::SocketAddr, process::ExitCode};

use lexopt::prelude::*;
use tokio::net::TcpListener;
use torpor_agent::{
    process::{Processes, Reaper},
    server,
    state::{AgentOptions, AgentState},
};

fn main() -> ExitCode {
    match command_line() {
        Ok(listen) => match serve(listen) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("torpor-agent: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("torpor-agent: {error}\nusage: torpor-agent serve --listen ADDRESS:PORT");
            ExitCode::from(2)
        }
    }
}

fn command_line() -> Result<SocketAddr, lexopt::Error> {
    let mut listen = None;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Value(command) if command == "serve" => {}
            Long("listen") => listen = Some(parser.value()?.parse()?),
            other => return Err(other.unexpected()),
        }
    }
    listen.ok_or_else(|| "--listen is missing".into())
}

fn serve(listen: SocketAddr) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        println!("listening on {}", listener.local_addr()?);
        let options = AgentOptions { init_from_anywhere: true, owns_machine: false };
        let state = AgentState::new(options);
        let processes = Processes::new(Reaper::run()?);
        server::serve(listener, server::router(state, processes)).await
    })
}

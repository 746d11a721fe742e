//! The `torpor` binary: sandboxes for AI agents that can be paused and resumed with everything in them.
//!
//! Each command has a module; this file only says which commands there are and what they are given.

mod bench;
mod client;
mod doctor;
mod embedded;
mod https;
mod layout;
mod link;
mod lock;
mod node;
mod progress;
mod serve;
mod settings;
mod setup;
mod teardown;
mod tls;
mod torture;
mod up;
mod vault;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use client::{
    Endpoint, GcCommand, KeyCommand, SandboxCommand, SnapshotCommand, TeamCommand, TemplateCommand,
};
use layout::DataDir;
use settings::{DataDirOption, Settings};

/// Sandboxes for AI agents that can be paused and resumed with everything in them.
///
/// `torpor up` sets this machine up and serves. Then set E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL, and use any
/// E2B SDK.
#[derive(Debug, Parser)]
#[command(name = "torpor", version, after_help = client::EXIT_CODES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    data_dir: DataDirOption,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set this machine up if needed, serve, and print how to connect
    Up {
        #[command(flatten)]
        setup: setup::SetupOptions,
        #[command(flatten)]
        settings: Settings,
    },
    /// Get everything a server needs: host programs, vault, accelerator, template `base`, first API key
    Setup {
        #[command(flatten)]
        setup: setup::SetupOptions,
        #[command(flatten)]
        settings: Settings,
    },
    /// Serve API and sandboxes until told to stop; running sandboxes outlive the server
    Serve {
        #[command(flatten)]
        settings: Settings,
    },
    /// Look at everything a server stands on, and say what is wrong and what to do
    Doctor {
        #[command(flatten)]
        options: doctor::DoctorOptions,
        #[command(flatten)]
        settings: Settings,
    },
    /// Create, list, enter, pause, resume and destroy sandboxes
    Sandbox(SandboxCommand),
    /// List templates
    Snapshot(SnapshotCommand),
    Template(TemplateCommand),
    /// Create, list and revoke API keys
    Key(KeyCommand),
    /// Make a private certificate authority and a certificate, and say how clients trust it
    Tls {
        #[command(flatten)]
        options: tls::TlsOptions,
    },
    /// Create and list teams, and set their limits
    Team(TeamCommand),
    /// Remove what was kept long enough: paused sandboxes and snapshots; a server does so by itself every hour
    Gc(GcCommand),
    /// Verify the snapshots of this node, or make its database again from them
    Vault(vault::VaultCommand),
    /// Print the OpenAPI document of the control plane, which servers have at /openapi.json
    Openapi,
    /// Measure what callers wait and what sandboxes cost
    Bench {
        #[command(flatten)]
        endpoint: Endpoint,
        /// Print JSON instead of a table
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
    /// Kill servers, machines and connections, fill the vault, cut the power, and see whether anything is ever lost
    Torture {
        #[command(flatten)]
        options: torture::TortureOptions,
    },
    /// End every machine and unmount the vault; what is paused stays, what runs is lost
    Teardown {
        #[command(flatten)]
        settings: Settings,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let data_dir = cli.data_dir.data_dir;
    run(cli.command, &data_dir).await.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

type Failure = Box<dyn std::error::Error>;

async fn run(command: Command, path: &Path) -> Result<ExitCode, Failure> {
    match command {
        Command::Up { setup, settings } => {
            start_logging(&settings, "warn,torpor=info")?;
            up::up(path, &setup, &settings).await?;
        }
        Command::Setup { setup, settings } => {
            start_logging(&settings, "warn")?;
            up::set_up(path, &setup, &settings).await?;
        }
        Command::Serve { settings } => {
            let data_dir = existing(path)?;
            let settings = settings.with_file(&data_dir)?;
            start_logging(&settings, "info")?;
            let ready = |address| tracing::info!(%address, data_dir = %data_dir.root().display(), "serving");
            serve::serve(&data_dir, &settings, ready).await?;
        }
        Command::Doctor { options, settings } => return Ok(doctor::run(path, &options, &settings).await),
        Command::Sandbox(command) => return Ok(command.run(path).await?),
        Command::Snapshot(command) => command.run(path).await?,
        Command::Template(command) => command.run(path).await?,
        Command::Key(command) => command.run(path).await?,
        Command::Tls { options } => println!("{}", tls::run(path, &options)?),
        Command::Team(command) => command.run(path).await?,
        Command::Gc(command) => return Ok(command.run(path).await?),
        Command::Vault(command) => return Ok(command.run(&existing(path)?).await?),
        Command::Openapi => client::say(&torpor_control::http::openapi_document())?,
        Command::Bench { endpoint, json, command } => {
            let console = progress::Console::new();
            let step = console.step("measuring");
            let told = |what: &str, round: u32| step.doing(&format!("{what}: {round}"));
            let result = bench::run(&command, &endpoint, path, json, told).await?;
            step.ok("done");
            println!("{result}");
        }
        Command::Torture { options } => {
            start_logging(&Settings::default(), "warn")?;
            let outcome = torture::torture(path, &options).await?;
            println!("{}", outcome.text);
            return Ok(if outcome.nothing_found { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Teardown { settings } => {
            let data_dir = existing(path)?;
            let settings = settings.with_file(&data_dir)?;
            start_logging(&settings, "warn")?;
            let ended = teardown::teardown(&data_dir, &settings).await?;
            println!(
                "{ended} machines ended; nothing of {} runs or is mounted any more",
                data_dir.root().display()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn existing(path: &Path) -> Result<DataDir, String> {
    DataDir::existing(path).map_err(|error| {
        format!(
            "cannot use the data directory {}: {error}. `torpor setup --data-dir` makes one",
            path.display()
        )
    })
}

/// Logs to standard error what the setting, or `default`, lets through; the steps of requests are always timed.
fn start_logging(settings: &Settings, default: &str) -> Result<(), String> {
    let filter = settings.log.as_deref().unwrap_or(default);
    let filter: EnvFilter = filter.parse().map_err(|error| format!("the setting log is wrong: {error}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(filter);
    let times =
        torpor_control::timings::StepTimes.with_filter(tracing_subscriber::filter::filter_fn(|meta| {
            meta.is_span() && meta.target().starts_with("torpor")
        }));
    tracing_subscriber::registry().with(lines).with(times).try_init().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_has_a_flag_a_variable_and_a_line_in_the_documentation() {
        let page = include_str!("../../../docs/configuration.md");
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let settings =
            serve.get_arguments().filter(|arg| arg.get_id() != "help" && arg.get_id() != "data_dir");
        for setting in settings {
            let flag = setting.get_long().unwrap();
            let variable = setting.get_env().unwrap().to_str().unwrap();
            let row = format!("| `--{flag}` | `{variable}` | `{}` |", flag.replace('-', "_"));
            assert!(page.contains(&row), "docs/configuration.md lacks: {row}");
        }
    }
}

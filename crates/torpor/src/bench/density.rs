//! `torpor bench density`: what many idle sandboxes cost in memory.
//!
//! Memory of a machine is the *proportional set size* of its process (`Pss` in `/proc/PID/smaps_rollup`, proc(5)): its own
//! pages, and its share of pages that several machines map, such as the clean pages of one template.

use std::path::{Path, PathBuf};

use super::api::{Api, ApiError, Handle};
use super::stats::Summary;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DensityOptions {
    /// Sandboxes that run at once
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// Template to create from
    #[arg(long, default_value = "base")]
    pub(crate) template: String,
}

/// What was measured, in MiB.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Density {
    /// Sandboxes that ran and answered a command.
    pub(crate) sandboxes: u32,
    /// Proportional set size of each machine's process.
    pub(crate) machine_pss_mib: Summary,
    /// How much less memory the host had available, by sandbox.
    pub(crate) host_mib_per_sandbox: f64,
    /// What the host still has available.
    pub(crate) host_available_mib: f64,
}

/// The measurement failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DensityError {
    /// A call to the server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Figures of the kernel.
    #[error("cannot read {path}: {why}")]
    Proc { path: PathBuf, why: String },
    /// No machines.
    #[error(
        "no machine's process is found below {0}: run the bench on the server's host, with its --data-dir"
    )]
    NoMachines(PathBuf),
}

/// Measures against a running server on this host, whose machines keep their records below `run_dir`.
pub(crate) async fn measure(
    api: &Api,
    options: &DensityOptions,
    run_dir: &Path,
    mut progress: impl FnMut(&str, u32),
) -> Result<Density, DensityError> {
    let before = available_mib()?;
    let mut sandboxes = Vec::new();
    let measured = fill_and_measure(api, options, run_dir, before, &mut sandboxes, &mut progress).await;
    for sandbox in &sandboxes {
        api.kill(sandbox).await?;
    }
    measured
}

async fn fill_and_measure(
    api: &Api,
    options: &DensityOptions,
    run_dir: &Path,
    before: f64,
    sandboxes: &mut Vec<Handle>,
    progress: &mut impl FnMut(&str, u32),
) -> Result<Density, DensityError> {
    for round in 0..options.count {
        let (sandbox, _) = api.create(&options.template).await?;
        sandboxes.push(sandbox);
        progress("create", round + 1);
    }
    for (round, sandbox) in sandboxes.iter().enumerate() {
        let said = api.run(sandbox, "echo $E2B_SANDBOX_ID").await?;
        if said.trim() != sandbox.id {
            let why = format!("it said '{}'", said.trim());
            return Err(ApiError::Command { command: format!("echo in {}", sandbox.id), why }.into());
        }
        progress("run a command in each", round as u32 + 1);
    }
    let after = available_mib()?;
    let sizes =
        machine_pids(run_dir, sandboxes)?.iter().map(|pid| pss_mib(*pid)).collect::<Result<Vec<_>, _>>()?;
    let machine_pss_mib = Summary::of(&sizes).ok_or_else(|| DensityError::NoMachines(run_dir.to_owned()))?;
    Ok(Density {
        sandboxes: options.count,
        machine_pss_mib,
        host_mib_per_sandbox: (before - after) / f64::from(options.count),
        host_available_mib: after,
    })
}

/// Processes of the machines that carry `sandboxes`.
fn machine_pids(run_dir: &Path, sandboxes: &[Handle]) -> Result<Vec<u32>, DensityError> {
    let machines = run_dir.join("machines");
    let unreadable =
        |error: std::io::Error| DensityError::Proc { path: machines.clone(), why: error.to_string() };
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(&machines).map_err(unreadable)? {
        let record = entry.map_err(unreadable)?.path().join("record.json");
        let Ok(text) = std::fs::read_to_string(&record) else { continue };
        let Ok(record) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
        let carries = record["note"]["sandbox"].as_str();
        if sandboxes.iter().any(|sandbox| Some(sandbox.id.as_str()) == carries) {
            pids.extend(record["pid"].as_u64().map(|pid| pid as u32));
        }
    }
    Ok(pids)
}

fn pss_mib(pid: u32) -> Result<f64, DensityError> {
    kib_line(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss:")
}

fn available_mib() -> Result<f64, DensityError> {
    kib_line(Path::new("/proc/meminfo"), "MemAvailable:")
}

/// The figure, given in KiB, behind `label` in a file of /proc; in MiB.
fn kib_line(path: &Path, label: &str) -> Result<f64, DensityError> {
    let failed = |why: String| DensityError::Proc { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| failed(format!("it has no line '{label}'")))
}

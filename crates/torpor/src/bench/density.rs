//! `torpor bench density`: what many sandboxes cost in memory, idle or reading the same data.
//!
//! Memory of a machine is the *proportional set size* of its process (`Pss` in `/proc/PID/smaps_rollup`, proc(5)): its own
//! pages, and its share of pages that several machines map, such as the clean pages of one snapshot. So the sum over all
//! machines counts every page once.

use std::path::{Path, PathBuf};

use super::api::{Api, ApiError, Handle};
use super::host::{self, HostError};
use super::live_data;
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
    /// Random data, in MB, that a process holds in the snapshot of which all are made, and which each of them reads
    #[arg(long, value_name = "MB", default_value_t = 0)]
    pub(crate) shared_mb: u32,
}

/// What was measured, in MiB.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Density {
    /// Sandboxes that ran and answered a command.
    pub(crate) sandboxes: u32,
    /// MB of one snapshot that each of them read.
    pub(crate) shared_mb: u32,
    /// Proportional set size of each machine's process.
    pub(crate) machine_pss_mib: Summary,
    /// That of all of them together.
    pub(crate) total_pss_mib: f64,
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
    #[error(transparent)]
    Host(#[from] HostError),
    /// No machines.
    #[error(
        "no machine's process is found below {0}: run the bench on the server's host, with its --data-dir"
    )]
    NoMachines(PathBuf),
}

/// What was made for a measurement, and goes after it.
#[derive(Default)]
struct Made {
    sandboxes: Vec<Handle>,
    snapshot: Option<String>,
}

/// Measures against a running server on this host, whose machines keep their records below `run_dir`.
pub(crate) async fn measure(
    api: &Api,
    options: &DensityOptions,
    run_dir: &Path,
    mut progress: impl FnMut(&str, u32),
) -> Result<Density, DensityError> {
    let mut made = Made::default();
    let measured = fill_and_measure(api, options, run_dir, &mut made, &mut progress).await;
    for sandbox in &made.sandboxes {
        api.kill(sandbox).await?;
    }
    if let Some(snapshot) = &made.snapshot {
        api.delete_snapshot(snapshot).await?;
    }
    measured
}

async fn fill_and_measure(
    api: &Api,
    options: &DensityOptions,
    run_dir: &Path,
    made: &mut Made,
    progress: &mut impl FnMut(&str, u32),
) -> Result<Density, DensityError> {
    let (origin, checksum) = match options.shared_mb {
        0 => (options.template.clone(), None),
        mb => snapshot_with_data(api, &options.template, mb, made).await?,
    };
    let before = host::available_mib()?;
    for round in 0..options.count {
        let (sandbox, _) = api.create(&origin).await?;
        made.sandboxes.push(sandbox);
        progress("create", round + 1);
    }
    for (round, sandbox) in made.sandboxes.iter().enumerate() {
        if let Some(checksum) = &checksum {
            live_data::check(api, sandbox, checksum).await?;
        }
        let said = api.run(sandbox, "echo $E2B_SANDBOX_ID").await?;
        if said.trim() != sandbox.id {
            let why = format!("it said '{}'", said.trim());
            return Err(ApiError::Command { command: format!("echo in {}", sandbox.id), why }.into());
        }
        progress("run a command in each", round as u32 + 1);
    }
    let after = host::available_mib()?;
    let is_made = |id: &str| made.sandboxes.iter().any(|sandbox| sandbox.id == id);
    let carrying = host::machines(run_dir)?.into_iter().filter(|m| m.sandbox.as_deref().is_some_and(is_made));
    let sizes = carrying.map(|machine| host::pss_mib(machine.pid)).collect::<Result<Vec<_>, _>>()?;
    let machine_pss_mib = Summary::of(&sizes).ok_or_else(|| DensityError::NoMachines(run_dir.to_owned()))?;
    Ok(Density {
        sandboxes: options.count,
        shared_mb: options.shared_mb,
        machine_pss_mib,
        total_pss_mib: sizes.iter().sum(),
        host_mib_per_sandbox: (before - after) / f64::from(options.count),
        host_available_mib: after,
    })
}

/// A snapshot with a process that holds `mb` MB: the id to create from, and the data's checksum.
async fn snapshot_with_data(
    api: &Api,
    template: &str,
    mb: u32,
    made: &mut Made,
) -> Result<(String, Option<String>), DensityError> {
    let (sandbox, _) = api.create(template).await?;
    made.sandboxes.push(sandbox.clone());
    let checksum = live_data::put(api, &sandbox, mb).await?;
    let (snapshot, _) = api.take_snapshot(&sandbox).await?;
    made.snapshot = Some(snapshot.clone());
    api.kill(&sandbox).await?;
    made.sandboxes.clear();
    Ok((snapshot, Some(checksum)))
}

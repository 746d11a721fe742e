//! `torpor bench paused`: what paused sandboxes cost, and whether they make anything slower.
//!
//! It starts servers of its own, so that it can kill them:
//!
//! ```text
//! start ─ pause 1 ─ measure ─ kill, start ×3 ─ pause the rest ─ measure ─ kill, start ×3 ─ kill all sandboxes ─ stop
//! ```
//!
//! What is measured with one and with all of them: memory, machines, mounts and open files; how long a caller waits for
//! the list, a description, a resume, the resumed sandbox's first answer, and a pause; and how long a server that was killed
//! takes until the next one answers, with every sandbox looked after.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};

use super::api::{Api, ApiError, Handle};
use super::host::{self, HostError};
use super::stats::Summary;
use crate::layout::DataDir;
use crate::torture::server::{Server, ServerError};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PausedOptions {
    /// Paused sandboxes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) count: u32,
    /// How many are made at the same time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) at_once: u32,
    /// How often each operation is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Template to create from
    #[arg(long, default_value = "base")]
    pub(crate) template: String,
    /// Leave the sandboxes there; those that are there already count
    #[arg(long)]
    pub(crate) keep: bool,
}

/// The measurement failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PausedError {
    /// A call to the server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Figures of the kernel.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Whose data directory is it?
    #[error(
        "the data directory has {0} sandboxes already, which this bench is not to touch: give it one of its own \
         (torpor setup --data-dir), or go on with those that an earlier run left (--keep)"
    )]
    NotEmpty(usize),
}

/// What was measured with that many paused sandboxes.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Cost {
    /// Paused sandboxes.
    pub(crate) paused: usize,
    /// Memory of the server that no file is behind, in MiB: of the one in which they were paused.
    pub(crate) server_mib: f64,
    /// The same right after a start.
    pub(crate) started_mib: f64,
    /// Machines: processes that carry a sandbox, or are kept ready for one.
    pub(crate) machines: usize,
    /// File systems mounted on the host.
    pub(crate) mounts: usize,
    /// Files that the server has open.
    pub(crate) open_files: usize,
    /// From the start of a server to its first answer, in milliseconds.
    pub(crate) start_ms: Summary,
    /// What callers wait, in milliseconds.
    pub(crate) waited_ms: Vec<(&'static str, Summary)>,
}

/// Measures on servers of its own, on `data_dir`.
pub(crate) async fn measure(
    data_dir: &DataDir,
    options: &PausedOptions,
    mut progress: impl FnMut(&str, u32),
) -> Result<Vec<Cost>, PausedError> {
    let mut server = Server::logging_to(data_dir, "bench.log")?;
    server.start().await?;
    let (url, key) = server.endpoint()?;
    let api = Api::new(&url, &key);
    let mut sandboxes = listed(&api).await?;
    if !sandboxes.is_empty() && !options.keep {
        return Err(PausedError::NotEmpty(sandboxes.len()));
    }
    let measured = grow(&mut server, &api, data_dir, options, &mut sandboxes, &mut progress).await;
    if !options.keep {
        let made = listed(&api).await?;
        let killed = stream::iter(&made).map(|sandbox| api.kill(sandbox)).buffer_unordered(8);
        killed.try_collect::<Vec<()>>().await?;
    }
    server.stop().await?;
    measured
}

async fn grow(
    server: &mut Server,
    api: &Api,
    data_dir: &DataDir,
    options: &PausedOptions,
    sandboxes: &mut Vec<Handle>,
    progress: &mut impl FnMut(&str, u32),
) -> Result<Vec<Cost>, PausedError> {
    let mut costs = Vec::new();
    for target in [1, options.count as usize] {
        if sandboxes.len() > target {
            continue;
        }
        let missing = stream::iter(sandboxes.len()..target).map(|_| paused(api, &options.template));
        let mut making = missing.buffer_unordered(options.at_once as usize);
        while let Some(sandbox) = making.try_next().await? {
            sandboxes.push(sandbox);
            progress("paused", sandboxes.len() as u32);
        }
        drop(making);
        costs.push(cost(server, api, data_dir, options, sandboxes).await?);
        progress("measured with", target as u32);
    }
    Ok(costs)
}

/// A new sandbox that is paused, and on disk.
async fn paused(api: &Api, template: &str) -> Result<Handle, ApiError> {
    let (sandbox, _) = api.create(template).await?;
    api.pause_durably(&sandbox).await?;
    Ok(sandbox)
}

async fn cost(
    server: &mut Server,
    api: &Api,
    data_dir: &DataDir,
    options: &PausedOptions,
    sandboxes: &[Handle],
) -> Result<Cost, PausedError> {
    // What the last pauses set off in the background is done by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let of_server = |server: &Server| server.pid().map(host::anonymous_mib).transpose();
    let server_mib = of_server(server)?.unwrap_or_default();
    let open_files = server.pid().map(host::open_files).transpose()?.unwrap_or_default();
    let (mut starts, mut started_mib) = (Vec::new(), 0.0);
    for _ in 0..3 {
        server.kill().await?;
        starts.push(server.start().await?.as_secs_f64() * 1e3);
        started_mib = of_server(server)?.unwrap_or_default();
    }
    // The machine that is kept ready is there by then, and has rehearsed; what else the start set off is done.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (machines, mounts) = (host::machines(&data_dir.run_dir())?.len(), host::mounts()?);
    let waited_ms = latencies(api, options.runs, sandboxes).await?;
    let start_ms =
        Summary::of(&starts).unwrap_or(Summary { count: 0, min: 0.0, median: 0.0, p99: 0.0, max: 0.0 });
    Ok(Cost {
        paused: sandboxes.len(),
        server_mib,
        started_mib,
        machines,
        mounts,
        open_files,
        start_ms,
        waited_ms,
    })
}

async fn latencies(
    api: &Api,
    runs: u32,
    sandboxes: &[Handle],
) -> Result<Vec<(&'static str, Summary)>, ApiError> {
    let (mut first, mut all, mut get) = (Vec::new(), Vec::new(), Vec::new());
    let (mut resume, mut answer, mut pause) = (Vec::new(), Vec::new(), Vec::new());
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    // Spread over all of them: no two in a row stand side by side in whatever order they are kept.
    let step = (sandboxes.len() / runs as usize).max(1);
    let some = || sandboxes.iter().step_by(step).cycle().take(runs as usize);
    for sandbox in some() {
        first.push(ms(api.list(None).await?.waited));
        let begun = Instant::now();
        listed(api).await?;
        all.push(ms(begun.elapsed()));
        get.push(ms(api.get(sandbox).await?.waited));
    }
    for sandbox in some() {
        let begun = Instant::now();
        let resumed = api.connect(sandbox).await?;
        resume.push(ms(resumed.waited));
        // Resumed, it has a token, which the list did not tell.
        let resumed = Handle::of(&resumed.body).ok_or(ApiError::NoId(resumed.body))?;
        api.agent_health(&resumed).await?;
        answer.push(ms(begun.elapsed()));
        pause.push(ms(api.pause(sandbox).await?.waited));
        api.wait_until_durable(sandbox).await?;
        // A machine is made ready for the next one, as it would be between two callers.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let series = [
        ("list, first page", first),
        ("list, all pages", all),
        ("get", get),
        ("resume", resume),
        ("resume until the agent's first answer", answer),
        ("pause", pause),
    ];
    Ok(series.into_iter().filter_map(|(what, values)| Some((what, Summary::of(&values)?))).collect())
}

/// All sandboxes there are.
async fn listed(api: &Api) -> Result<Vec<Handle>, ApiError> {
    let (mut all, mut next) = (Vec::new(), None);
    loop {
        let page = api.list(next.as_deref()).await?;
        all.extend(page.body.as_array().into_iter().flatten().filter_map(Handle::of));
        match page.next_token {
            Some(token) => next = Some(token),
            None => return Ok(all),
        }
    }
}

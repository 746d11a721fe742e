//! `torpor bench latency`: how long a caller waits for create, pause and resume.
//!
//! One sandbox holds random live data in a Python process, with a checksum. Each round pauses it, waits until the pause is
//! durable (so that the resume is one from disk, in a fresh machine), resumes it, and asks its agent for a sign of life.
//! In the first series all live data was written since the snapshot it came from: the first time because it is new, then
//! because every page is written anew. In the second it works a little between the rounds, as sandboxes mostly do. The
//! third resumes before the pause is durable. The fourth takes snapshots while it runs on, and has written 100 MB since the
//! one before (in a sandbox of its own, where there is no room for that beside the live data).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::api::{Api, ApiError, Handle, Timed};
use super::live_data;
use super::stats::Summary;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LatencyOptions {
    /// Rounds of each series
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Rounds of the series in which all live data has changed since the last pause
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rewrites: u32,
    /// Random live data in the sandbox, in MB
    #[arg(long, default_value_t = 400)]
    pub(crate) live_mb: u32,
    /// Template to create from
    #[arg(long, default_value = "base")]
    pub(crate) template: String,
}

/// Between one round and the next. Callers come now and then: the warm pool gets a machine ready again meanwhile.
const REST: Duration = Duration::from_secs(2);

/// The server's step in which a machine that is copied stands still.
const STOPPED: &str = "sandbox.stopped";

/// What the guest and the snapshots' 100 MB need beside the live data, in MiB.
const ROOM_FOR_SNAPSHOTS_MIB: u32 = 400;

/// Writes 100 MB that are not zeros into the guest's memory.
const DIRTY_100_MB: &str = "head -c 5000000 /dev/urandom > /dev/shm/seed; \
                            for i in $(seq 20); do cat /dev/shm/seed; done > /dev/shm/more; rm /dev/shm/seed";

/// One operation, measured many times.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Series {
    /// What the caller did.
    pub(crate) what: &'static str,
    /// What he waited, in milliseconds.
    pub(crate) waited_ms: Summary,
    /// Median of each step inside the server, in milliseconds.
    pub(crate) steps_ms: BTreeMap<String, f64>,
}

#[derive(Default)]
struct Collector {
    waited: Vec<f64>,
    steps: BTreeMap<String, Vec<f64>>,
}

/// Measures against a running server. `progress` is told after every round.
pub(crate) async fn measure(
    api: &Api,
    options: &LatencyOptions,
    mut progress: impl FnMut(&str, u32),
) -> Result<Vec<Series>, ApiError> {
    let (mut create, mut created, mut commanded) =
        (Collector::default(), Collector::default(), Collector::default());
    for round in 0..options.runs {
        let asked = Instant::now();
        let (sandbox, answer) = api.create(&options.template).await?;
        create.add(&answer);
        api.agent_health(&sandbox).await?;
        created.waited.push(asked.elapsed().as_secs_f64() * 1e3);
        api.run(&sandbox, "true").await?;
        commanded.waited.push(asked.elapsed().as_secs_f64() * 1e3);
        api.kill(&sandbox).await?;
        progress("create", round + 1);
        tokio::time::sleep(REST).await;
    }
    let mut all = vec![
        create.series("create"),
        created.series("create until the agent's first answer"),
        commanded.series("create until a first command has ended"),
    ];
    let (sandbox, _) = api.create(&options.template).await?;
    let has_room = api.memory_mib(&sandbox).await? >= options.live_mb + ROOM_FOR_SNAPSHOTS_MIB;
    let measured = with_live_data(api, options, &sandbox, has_room, &mut progress).await;
    api.kill(&sandbox).await?;
    all.extend(measured?);
    if !has_room {
        let (sandbox, _) = api.create(&options.template).await?;
        let measured = snapshots(api, options, &sandbox, &mut progress).await;
        api.kill(&sandbox).await?;
        all.extend(measured?);
    }
    Ok(all.into_iter().flatten().collect())
}

async fn with_live_data(
    api: &Api,
    options: &LatencyOptions,
    sandbox: &Handle,
    has_room: bool,
    progress: &mut impl FnMut(&str, u32),
) -> Result<Vec<Option<Series>>, ApiError> {
    progress("filling the memory", 1);
    let before = live_data::put(api, sandbox, options.live_mb).await?;
    let mut all = rewritten(api, options, sandbox, progress).await?;
    all.extend(rounds(api, options, sandbox, progress).await?);
    if has_room {
        all.extend(snapshots(api, options, sandbox, progress).await?);
    }
    live_data::check(api, sandbox, &before).await?;
    Ok(all)
}

async fn rewritten(
    api: &Api,
    options: &LatencyOptions,
    sandbox: &Handle,
    progress: &mut impl FnMut(&str, u32),
) -> Result<Vec<Option<Series>>, ApiError> {
    let (mut pause, mut durable) = (Collector::default(), Collector::default());
    for round in 0..options.rewrites {
        if round > 0 {
            live_data::rewrite(api, sandbox).await?;
        }
        let started = Instant::now();
        pause.add(&api.pause(sandbox).await?);
        api.wait_until_durable(sandbox).await?;
        durable.waited.push(started.elapsed().as_secs_f64() * 1e3);
        api.connect(sandbox).await?;
        progress("pause with all live data changed", round + 1);
    }
    Ok(vec![
        pause.series("pause, all live data changed"),
        durable.series("pause until durable, all live data changed"),
    ])
}

async fn rounds(
    api: &Api,
    options: &LatencyOptions,
    sandbox: &Handle,
    progress: &mut impl FnMut(&str, u32),
) -> Result<Vec<Option<Series>>, ApiError> {
    let mut pause = Collector::default();
    let mut durable = Collector::default();
    let mut resume = Collector::default();
    let mut answer = Collector::default();
    let mut quick_resume = Collector::default();
    touch(api, sandbox).await?;
    for round in 0..options.runs {
        let started = Instant::now();
        pause.add(&api.pause(sandbox).await?);
        api.wait_until_durable(sandbox).await?;
        durable.waited.push(started.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(REST).await;
        let asked = Instant::now();
        resume.add(&api.connect(sandbox).await?);
        api.agent_health(sandbox).await?;
        answer.waited.push(asked.elapsed().as_secs_f64() * 1e3);
        touch(api, sandbox).await?;
        progress("pause and resume", round + 1);
    }
    for round in 0..options.runs {
        api.pause(sandbox).await?;
        quick_resume.add(&api.connect(sandbox).await?);
        touch(api, sandbox).await?;
        progress("resume before the pause is saved", round + 1);
    }
    Ok(vec![
        pause.series("pause"),
        durable.series("pause until durable"),
        resume.series("resume"),
        answer.series("resume until the agent's first answer"),
        quick_resume.series("resume before the pause is saved"),
    ])
}

async fn snapshots(
    api: &Api,
    options: &LatencyOptions,
    sandbox: &Handle,
    progress: &mut impl FnMut(&str, u32),
) -> Result<Vec<Option<Series>>, ApiError> {
    let (mut snapshot, mut stopped) = (Collector::default(), Collector::default());
    for round in 0..options.runs {
        api.run(sandbox, DIRTY_100_MB).await?;
        let answer = api.snapshot(sandbox).await?;
        stopped.waited.extend(answer.steps.get(STOPPED));
        snapshot.add(&answer);
        progress("snapshot", round + 1);
    }
    Ok(vec![
        snapshot.series("snapshot of a running sandbox"),
        stopped.series("the guest stands still for a snapshot"),
    ])
}

/// A little work, so that every pause has something to save.
async fn touch(api: &Api, sandbox: &Handle) -> Result<(), ApiError> {
    api.run(sandbox, "head -c 8000000 /dev/urandom > /dev/shm/work").await.map(|_| ())
}

// === impl Collector ===

impl Collector {
    fn add(&mut self, answer: &Timed) {
        self.waited.push(answer.waited.as_secs_f64() * 1e3);
        for (step, ms) in &answer.steps {
            self.steps.entry(step.clone()).or_default().push(*ms);
        }
    }

    fn series(self, what: &'static str) -> Option<Series> {
        let median = |values: &Vec<f64>| Summary::of(values).map(|summary| summary.median);
        let steps_ms = self.steps.iter().filter_map(|(step, values)| Some((step.clone(), median(values)?)));
        Some(Series { what, waited_ms: Summary::of(&self.waited)?, steps_ms: steps_ms.collect() })
    }
}

//! `torpor bench latency`: how long a caller waits for create, pause and resume.
//!
//! One sandbox holds random live data in a Python process, with a checksum. Each round pauses it, waits until the pause is
//! durable (so that the resume is one from disk, in a fresh machine), resumes it, and asks its agent for a sign of life.
//! In the first series all live data was written since the snapshot it came from: the first time because it is new, then
//! because every page is written anew. In the second it works a little between the rounds, as sandboxes mostly do. The
//! third resumes before the pause is durable. The fourth takes snapshots while it runs on, and has written 100 MB since the
//! one before (in a sandbox of its own, where there is no room for that beside the live data).

use std::collections::BTreeMap;

use super::api::{Api, ApiError, Handle, Timed};
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
    let (mut create, mut created) = (Collector::default(), Collector::default());
    for round in 0..options.runs {
        let asked = std::time::Instant::now();
        let (sandbox, answer) = api.create(&options.template).await?;
        create.add(&answer);
        api.agent_health(&sandbox).await?;
        created.waited.push(asked.elapsed().as_secs_f64() * 1e3);
        api.kill(&sandbox).await?;
        progress("create", round + 1);
    }
    let mut all = vec![create.series("create"), created.series("create until the agent's first answer")];
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
    let before = fill(api, sandbox, options.live_mb).await?;
    let mut all = rewritten(api, options, sandbox, progress).await?;
    all.extend(rounds(api, options, sandbox, progress).await?);
    if has_room {
        all.extend(snapshots(api, options, sandbox, progress).await?);
    }
    check(api, sandbox, &before).await?;
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
            api.run(sandbox, "rm /tmp/rewritten; kill -USR2 $(cat /tmp/holder.pid)").await?;
            wait_for(api, sandbox, "/tmp/rewritten").await?;
        }
        let started = std::time::Instant::now();
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
        let started = std::time::Instant::now();
        pause.add(&api.pause(sandbox).await?);
        api.wait_until_durable(sandbox).await?;
        durable.waited.push(started.elapsed().as_secs_f64() * 1e3);
        let asked = std::time::Instant::now();
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

/// Starts a process that holds `mb` MB of random data, and writes to every page of them, changing nothing, when it gets
/// SIGUSR2; returns their checksum.
async fn fill(api: &Api, sandbox: &Handle, mb: u32) -> Result<String, ApiError> {
    let holder = format!(
        "import hashlib, os, signal\n\
         data = [bytearray(os.urandom(1000000)) for _ in range({mb})]\n\
         def say(name, text):\n    \
             open('/tmp/new', 'w').write(text); os.rename('/tmp/new', '/tmp/' + name)\n\
         def tell(*_):\n    \
             digest = hashlib.sha256()\n    \
             for part in data: digest.update(part)\n    \
             say('digest', digest.hexdigest())\n\
         def rewrite(*_):\n    \
             for part in data: part[::4096] = part[::4096]; part[-1] = part[-1]\n    \
             say('rewritten', 'yes')\n\
         signal.signal(signal.SIGUSR1, tell)\n\
         signal.signal(signal.SIGUSR2, rewrite)\n\
         tell()\n\
         while True: signal.pause()\n"
    );
    let start = format!(
        "cat > /tmp/holder.py <<'END'\n{holder}END\nrm -f /tmp/digest; touch /tmp/rewritten\n\
         setsid python3 /tmp/holder.py </dev/null >/tmp/holder.log 2>&1 &\necho $! > /tmp/holder.pid"
    );
    api.run(sandbox, &start).await?;
    wait_for(api, sandbox, "/tmp/digest").await
}

/// Has the process compute its checksum anew and compares.
async fn check(api: &Api, sandbox: &Handle, before: &str) -> Result<(), ApiError> {
    api.run(sandbox, "rm /tmp/digest; kill -USR1 $(cat /tmp/holder.pid)").await?;
    let after = wait_for(api, sandbox, "/tmp/digest").await?;
    if after == before {
        return Ok(());
    }
    let why = format!("the live data changed: SHA-256 {before} before, {after} after");
    Err(ApiError::Command { command: "sha256".to_owned(), why })
}

/// Waits, for an hour at most, until the holder has written `file`; returns what is in it.
async fn wait_for(api: &Api, sandbox: &Handle, file: &str) -> Result<String, ApiError> {
    let wait = format!(
        "for i in $(seq 36000); do [ -s {file} ] && exec cat {file}; \
         kill -0 $(cat /tmp/holder.pid) || {{ cat /tmp/holder.log; exit 1; }}; sleep 0.1; done; exit 1"
    );
    api.run(sandbox, &wait).await
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

//! `torpor torture`: is anything ever lost?
//!
//! A number of sandboxes work, each with a *checker* in it that keeps state in memory, in files, in a database and
//! in an open terminal. A *model* here follows what they do. In every *cycle* something is done to one of them or to
//! all, chosen by a seed: they are paused, resumed, forked, restored from snapshots; the server is killed, machines are
//! killed, the vault is filled. After every cycle every sandbox has to be what the model says, exactly; what was
//! reported durable has to be there.
//!
//! ```text
//! run.rs  ── plan of a cycle (action.rs) ──▶ deeds.rs, faults.rs ── requests (api.rs) ──▶ server (server.rs)
//!   │                                              │                                          │
//!   │ check.rs ── compares ───────────────── world.rs, model.rs                      sandboxes with checker.py
//!   │                                              │ claims.rs: what has to be there
//!   └────── power_cut.rs: clones the vault's image at random instants, and looks ──▶ a copy of the vault
//! ```

mod action;
mod api;
mod check;
mod claims;
mod deeds;
mod draw;
mod faults;
#[cfg(feature = "interruptions")]
mod interruptions;
mod model;
mod power_cut;
mod report;
mod run;
pub(crate) mod server;
mod terminal;
mod world;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use action::Plan;
use power_cut::{CutChecks, PowerCuts};
use report::Report;
use run::{Run, RunError};

use crate::layout::{DEFAULT_DATA_DIR, DataDir};
use crate::progress::Console;

/// How to torture.
#[derive(Debug, clap::Args)]
pub(crate) struct TortureOptions {
    /// How many things are done, one after the other
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,

    /// Decides what is done; the same seed gives the same sequence [default: the time]
    #[arg(long)]
    seed: Option<u64>,

    /// Sandboxes at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=90))]
    sandboxes: u32,

    /// Instants at which a copy of the vault's disk is made and looked at; needs vault.img on a file system that
    /// clones files
    #[arg(long, default_value_t = 0)]
    power_cuts: u32,

    /// Instead of cycles, end the server at every numbered step of every operation, and write what the next one made of
    /// it into this page
    #[cfg(feature = "interruptions")]
    #[arg(long, value_name = "FILE")]
    interruptions: Option<PathBuf>,

    /// Say what is done in each cycle
    #[arg(long, short)]
    verbose: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Write the result into this page, in place of the last one
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Torture cannot begin, or its result cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TortureError {
    /// Not root.
    #[error("torture kills machines and mounts copies of the vault: run it as root")]
    NotRoot,
    /// A data directory that somebody may need.
    #[error(
        "torture kills what is in its data directory: give it one of its own with --data-dir, which `torpor setup` made"
    )]
    NotItsOwn,
    /// The data directory.
    #[error("cannot use the data directory {path}: {cause}. `torpor setup --data-dir` makes one")]
    DataDir { path: PathBuf, cause: std::io::Error },
    /// Before the first cycle.
    #[error(transparent)]
    Start(#[from] RunError),
    /// The result.
    #[error("the result cannot be written to {path}: {cause}")]
    Report { path: PathBuf, cause: std::io::Error },
    /// The result as JSON.
    #[error("the result cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

/// What is to be printed, and whether nothing was found.
pub(crate) struct Outcome {
    pub(crate) text: String,
    pub(crate) nothing_found: bool,
}

/// Tortures a server on the data directory at `path`.
pub(crate) async fn torture(path: &Path, options: &TortureOptions) -> Result<Outcome, TortureError> {
    if !rustix::process::geteuid().is_root() {
        return Err(TortureError::NotRoot);
    }
    if path == Path::new(DEFAULT_DATA_DIR) {
        return Err(TortureError::NotItsOwn);
    }
    let data_dir =
        DataDir::existing(path).map_err(|cause| TortureError::DataDir { path: path.to_owned(), cause })?;
    let begun = jiff::Timestamp::now();
    // Any number will do.
    let seed = options.seed.unwrap_or(begun.as_second().unsigned_abs());
    let (started, console) = (Instant::now(), Console::new());
    let step = console.step("sandboxes");
    step.doing(&format!("filling {}, seed {seed}", options.sandboxes));
    let count = options.sandboxes as usize;
    let filled = |there: usize| step.done(there as f64 / f64::from(options.sandboxes));
    let mut run = Run::start(seed, data_dir.clone(), count, filled).await?;
    step.ok(&format!("{count} run, seed {seed}"));
    #[cfg(feature = "interruptions")]
    if let Some(page) = &options.interruptions {
        let text = run.interrupt_everywhere(page).await?;
        return Ok(Outcome { text, nothing_found: true });
    }
    let cuts = match options.power_cuts {
        0 => None,
        _ => Some(PowerCuts::new(&data_dir, run.claims.clone())?),
    };
    let mut power_cuts = CutChecks::default();
    let ended = cycles(&mut run, seed, options, cuts, &mut power_cuts, console).await;
    let violation = match ended {
        Ok(cycle) => finish(&mut run, cycle).await.err(),
        Err(error) => Some(error),
    };
    let violations: Vec<String> = violation.iter().map(ToString::to_string).collect();
    if violations.is_empty() {
        run.server.stop().await.map_err(RunError::from)?;
    } else {
        // As it is: whoever looks for the cause needs everything.
        run.server.kill().await.map_err(RunError::from)?;
        let (dir, cycle) = (data_dir.root().display(), run.actions.values().sum::<u32>());
        eprintln!(
            "Violation in cycle {cycle} of seed {seed}. {dir} is kept as it is; the server's log is {}",
            run.server.log().display()
        );
    }
    let accelerator = std::fs::read_to_string(data_dir.root().join("accelerator.json")).unwrap_or_default();
    let kvm = accelerator.contains("\"kvm\"");
    let report = Report {
        begun,
        seed,
        sandboxes: count,
        cycles: run.actions.values().sum(),
        actions: run.actions,
        checks: run.checks,
        power_cuts,
        duration_s: started.elapsed().as_secs(),
        longest_server_start_ms: run.longest_start.as_millis() as u64,
        machine: report::machine(if kvm { "kvm" } else { "tcg" }),
        version: concat!("torpor ", env!("CARGO_PKG_VERSION")).to_owned(),
        violations,
    };
    if let Some(path) = &options.report {
        let failed = |cause| TortureError::Report { path: path.clone(), cause };
        let page = std::fs::read_to_string(path).map_err(failed)?;
        std::fs::write(path, report.written_into(&page)).map_err(failed)?;
    }
    let text = if options.json { report.json()? } else { report.table() };
    Ok(Outcome { text, nothing_found: report.violations.is_empty() })
}

/// Does the cycles, until the last one, a violation, or an interrupt. Says how many.
async fn cycles(
    run: &mut Run,
    seed: u64,
    options: &TortureOptions,
    cuts: Option<PowerCuts>,
    power_cuts: &mut CutChecks,
    console: Console,
) -> Result<u32, RunError> {
    let step = console.step("cycles");
    step.doing(&format!("{} with seed {seed}", options.cycles));
    // Between cycles only, so that model and sandboxes agree when it ends.
    let interrupted = tokio::spawn(tokio::signal::ctrl_c());
    let mut looking: Option<tokio::task::JoinHandle<Result<CutChecks, RunError>>> = None;
    let mut done = 0;
    for cycle in 1..=options.cycles {
        let plan = Plan::of(seed, cycle, run.slots.len(), options.power_cuts, options.cycles);
        if let (Some(cuts), Some(after_ms)) = (&cuts, plan.cut_after_ms) {
            // One at a time: what was found by the one before is what the next begins with.
            if let Some(before) = looking.take() {
                *power_cuts = before.await??;
            }
            let (cuts, found) = (cuts.clone(), power_cuts.clone());
            looking = Some(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(after_ms.into())).await;
                let number = found.cuts + 1;
                cuts.cut(number, found).await
            }));
        }
        let begun = Instant::now();
        run.cycle(plan).await?;
        done = cycle;
        if options.verbose {
            let cut = plan.cut_after_ms.map(|_| ", power cut").unwrap_or_default();
            let (action, seconds) = (plan.action.name(), begun.elapsed().as_secs_f64());
            eprintln!("  {cycle:>5}  {action} ({}, {}){cut}: {seconds:.1} s", plan.slot, plan.other);
        }
        step.done(f64::from(cycle) / f64::from(options.cycles));
        if interrupted.is_finished() {
            break;
        }
    }
    interrupted.abort();
    if let Some(last) = looking {
        *power_cuts = last.await??;
    }
    step.ok(&format!("{done} done, and everything is what it has to be"));
    Ok(done)
}

/// Looks at everything once more, and takes it away.
async fn finish(run: &mut Run, cycle: u32) -> Result<(), RunError> {
    run.look_at_every_byte(cycle).await?;
    run.take_away().await
}

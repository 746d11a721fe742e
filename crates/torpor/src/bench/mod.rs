//! `torpor bench`: what callers wait, and what sandboxes cost.

mod api;
mod density;
mod host;
mod latency;
mod live_data;
mod paused;
mod stats;

use std::fmt::Write;
use std::path::Path;

use api::Api;
use density::{Density, DensityError, DensityOptions};
use latency::{LatencyOptions, Series};
use paused::{Cost, PausedError, PausedOptions};

use crate::client::Endpoint;
use crate::layout::DataDir;

/// What to measure.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// How long a caller waits for create, pause and resume, and where the time goes
    Latency(LatencyOptions),
    /// How much memory sandboxes take that are idle, or read the same data
    Density(DensityOptions),
    /// What paused sandboxes cost, and whether they make anything slower; on a data directory of its own, on which no server runs
    Paused(PausedOptions),
}

/// The bench did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A call to the server.
    #[error(transparent)]
    Api(#[from] api::ApiError),
    /// Memory figures.
    #[error(transparent)]
    Density(#[from] DensityError),
    /// Paused sandboxes.
    #[error(transparent)]
    Paused(#[from] PausedError),
    /// The server.
    #[error(transparent)]
    Client(#[from] crate::client::ClientError),
    /// The data directory.
    #[error("cannot use the data directory {}: {cause}. `torpor setup --data-dir` makes one", .path.display())]
    DataDir { path: std::path::PathBuf, cause: std::io::Error },
    /// The result cannot be written as JSON.
    #[error("the result cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

/// Runs a measurement, against the server at `endpoint` or on one of its own, and returns what is to be printed.
pub(crate) async fn run(
    command: &BenchCommand,
    endpoint: &Endpoint,
    data_dir: &Path,
    json: bool,
    progress: impl FnMut(&str, u32),
) -> Result<String, BenchError> {
    let api = || endpoint.resolve(data_dir).map(|(url, key)| Api::new(&url, &key));
    Ok(match command {
        BenchCommand::Latency(options) => {
            let series = latency::measure(&api()?, options, progress).await?;
            if json { serde_json::to_string_pretty(&series)? } else { latency_table(options, &series) }
        }
        BenchCommand::Density(options) => {
            let run_dir = DataDir::existing(data_dir).map(|data_dir| data_dir.run_dir()).unwrap_or_default();
            let density = density::measure(&api()?, options, &run_dir, progress).await?;
            if json { serde_json::to_string_pretty(&density)? } else { density_text(&density) }
        }
        BenchCommand::Paused(options) => {
            let unusable = |cause| BenchError::DataDir { path: data_dir.to_owned(), cause };
            let data_dir = DataDir::existing(data_dir).map_err(unusable)?;
            let costs = paused::measure(&data_dir, options, progress).await?;
            if json { serde_json::to_string_pretty(&costs)? } else { paused_table(&costs) }
        }
    })
}

fn latency_table(options: &LatencyOptions, series: &[Series]) -> String {
    let mut text =
        format!("{} MB random live data, {} rounds; milliseconds\n\n", options.live_mb, options.runs);
    let width = series.iter().map(|series| series.what.len()).max().unwrap_or(0);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{:width$}  {:>8} {:>8} {:>8} {:>8}", "", "median", "p99", "min", "max");
    for Series { what, waited_ms: s, .. } in series {
        let _ = writeln!(text, "{what:width$}  {:8.1} {:8.1} {:8.1} {:8.1}", s.median, s.p99, s.min, s.max);
    }
    let _ =
        writeln!(text, "\nWhere the time goes (median of each step; steps overlap and contain each other)");
    for Series { what, steps_ms, .. } in series.iter().filter(|series| !series.steps_ms.is_empty()) {
        let _ = writeln!(text, "\n{what}");
        for (step, ms) in steps_ms {
            let _ = writeln!(text, "  {step:<30} {ms:8.2}");
        }
    }
    text
}

fn density_text(density: &Density) -> String {
    let Density { sandboxes, shared_mb, machine_pss_mib: pss, .. } = density;
    let read = match shared_mb {
        0 => String::new(),
        mb => format!(" and read {mb} MB of their snapshot's memory"),
    };
    format!(
        "{sandboxes} sandboxes run at once; each answered a command{read}\n\
         memory of a machine (Pss)       {:8.1} MiB median, {:.1} smallest, {:.1} largest\n\
         memory of all machines (Pss)    {:8.1} MiB\n\
         memory of the host by sandbox   {:8.1} MiB\n\
         still available on the host     {:8.0} MiB\n",
        pss.median,
        pss.min,
        pss.max,
        density.total_pss_mib,
        density.host_mib_per_sandbox,
        density.host_available_mib
    )
}

fn paused_table(costs: &[Cost]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut row = |what: &str, of: &dyn Fn(&Cost) -> String| {
        rows.push((what.to_owned(), costs.iter().map(of).collect()));
    };
    row("paused sandboxes", &|cost| cost.paused.to_string());
    row("memory of the server, MiB", &|cost| format!("{:.1}", cost.server_mib));
    row("memory of one just started, MiB", &|cost| format!("{:.1}", cost.started_mib));
    row("machines (those kept ready)", &|cost| cost.machines.to_string());
    row("mounts on the host", &|cost| cost.mounts.to_string());
    row("files the server has open", &|cost| cost.open_files.to_string());
    row("start after a kill, ms", &|cost| format!("{:.0}", cost.start_ms.median));
    for (number, (what, _)) in costs.first().into_iter().flat_map(|cost| cost.waited_ms.iter().enumerate()) {
        row(&format!("{what}, ms"), &|cost| {
            cost.waited_ms
                .get(number)
                .map_or_else(String::new, |(_, summary)| format!("{:.1}", summary.median))
        });
    }
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (what, figures) in rows {
        let figures: String = figures.iter().map(|figure| format!(" {figure:>9}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:width$} {figures}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::stats::Summary;
    use super::*;

    #[test]
    fn the_table_names_what_was_done_and_where_the_time_went() {
        let options = LatencyOptions { runs: 20, rewrites: 5, live_mb: 400, template: "base".to_owned() };
        let waited_ms = Summary::of(&[5.0, 6.0, 9.0]).unwrap();
        let steps_ms =
            BTreeMap::from([("machine.stop".to_owned(), 0.9), ("machine.device_state".to_owned(), 2.9)]);
        let series = [
            Series { what: "pause", waited_ms, steps_ms },
            Series { what: "pause until durable", waited_ms, steps_ms: BTreeMap::new() },
        ];
        insta::assert_snapshot!(latency_table(&options, &series), @r"
        400 MB random live data, 20 rounds; milliseconds

                               median      p99      min      max
        pause                     6.0      9.0      5.0      9.0
        pause until durable       6.0      9.0      5.0      9.0

        Where the time goes (median of each step; steps overlap and contain each other)

        pause
          machine.device_state               2.90
          machine.stop                       0.90
        ");
    }

    #[test]
    fn what_paused_sandboxes_cost_stands_beside_what_one_costs() {
        let waited = |median| Summary::of(&[median]).unwrap();
        let cost = |paused: usize, list_ms| Cost {
            paused,
            server_mib: 4.7 + paused as f64 / 100.0,
            started_mib: 4.7,
            machines: 1,
            mounts: 24,
            open_files: 26,
            start_ms: waited(300.0),
            waited_ms: vec![("list, first page", waited(list_ms)), ("get", waited(0.5))],
        };
        insta::assert_snapshot!(paused_table(&[cost(1, 0.5), cost(1000, 1.9)]), @r"
        paused sandboxes                         1      1000
        memory of the server, MiB              4.7      14.7
        memory of one just started, MiB        4.7       4.7
        machines (those kept ready)              1         1
        mounts on the host                      24        24
        files the server has open               26        26
        start after a kill, ms                 300       300
        list, first page, ms                   0.5       1.9
        get, ms                                0.5       0.5
        ");
    }

    #[test]
    fn the_cost_of_many_says_what_they_did_and_what_they_take_together() {
        let machine_pss_mib = Summary::of(&[113.0, 113.8, 118.5]).unwrap();
        let density = Density {
            sandboxes: 10,
            shared_mb: 400,
            machine_pss_mib,
            total_pss_mib: 1145.1,
            host_mib_per_sandbox: 164.3,
            host_available_mib: 21088.0,
        };
        insta::assert_snapshot!(density_text(&density), @r"
        10 sandboxes run at once; each answered a command and read 400 MB of their snapshot's memory
        memory of a machine (Pss)          113.8 MiB median, 113.0 smallest, 118.5 largest
        memory of all machines (Pss)      1145.1 MiB
        memory of the host by sandbox      164.3 MiB
        still available on the host        21088 MiB
        ");
    }
}

//! `torpor bench`: what callers wait, and what sandboxes cost, measured against a running server.

mod api;
mod density;
mod latency;
mod stats;

use std::fmt::Write;
use std::path::Path;

use api::Api;
use density::{Density, DensityError, DensityOptions};
use latency::{LatencyOptions, Series};

/// What to measure.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// How long a caller waits for create, pause and resume, and where the time goes
    Latency(LatencyOptions),
    /// How much memory idle sandboxes take
    Density(DensityOptions),
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
    /// The result cannot be written as JSON.
    #[error("the result cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

/// Runs a measurement against the server at `url` and returns what is to be printed.
pub(crate) async fn run(
    command: &BenchCommand,
    url: &str,
    key: &str,
    run_dir: &Path,
    json: bool,
    progress: impl FnMut(&str, u32),
) -> Result<String, BenchError> {
    let api = Api::new(url, key);
    Ok(match command {
        BenchCommand::Latency(options) => {
            let series = latency::measure(&api, options, progress).await?;
            if json { serde_json::to_string_pretty(&series)? } else { latency_table(options, &series) }
        }
        BenchCommand::Density(options) => {
            let density = density::measure(&api, options, run_dir, progress).await?;
            if json { serde_json::to_string_pretty(&density)? } else { density_text(&density) }
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
    let Density { sandboxes, machine_pss_mib: pss, host_mib_per_sandbox, host_available_mib } = density;
    format!(
        "{sandboxes} sandboxes run at once and each answered a command\n\
         memory of a machine (Pss)       {:8.1} MiB median, {:.1} smallest, {:.1} largest\n\
         memory of the host by sandbox   {host_mib_per_sandbox:8.1} MiB\n\
         still available on the host     {host_available_mib:8.0} MiB\n",
        pss.median, pss.min, pss.max
    )
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
}

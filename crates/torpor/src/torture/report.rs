//! What a run came to: as a table, as JSON, and as `docs/integrity.md`.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::action::Action;
use super::check::Checks;
use super::power_cut::CutChecks;

/// A run that came to its end, or to a violation.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// When it began.
    pub(super) begun: jiff::Timestamp,
    pub(super) seed: u64,
    pub(super) sandboxes: usize,
    pub(super) cycles: u32,
    /// How often each action was done.
    pub(super) actions: BTreeMap<Action, u32>,
    pub(super) checks: Checks,
    pub(super) power_cuts: CutChecks,
    /// What was not as it had to be; a run ends with the first.
    pub(super) violations: Vec<String>,
    pub(super) duration_s: u64,
    pub(super) longest_server_start_ms: u64,
    pub(super) machine: String,
    /// The program that was tortured.
    pub(super) version: String,
}

/// What the table of results is written between.
const BEGIN: &str = "<!-- written by `torpor torture --report`: begin -->";
const END: &str = "<!-- end -->";

// === impl Report ===

impl Report {
    /// As a table for people.
    pub(super) fn table(&self) -> String {
        let mut text = String::from("| action | times |\n|---|---|\n");
        // Writing to a string cannot fail.
        for action in Action::all() {
            let times = self.actions.get(&action).copied().unwrap_or_default();
            let _ = writeln!(text, "| {} | {times} |", action.name());
        }
        let Checks {
            compared, in_full, described, terminals, set_back, never_paused, refused_for_room, ..
        } = &self.checks;
        let cut = &self.power_cuts;
        let gib = cut.verified_bytes >> 30;
        let rows = [
            ("cycles", u64::from(self.cycles)),
            ("sandboxes at a time", self.sandboxes as u64),
            ("states compared with the model", *compared),
            ("of these, with every byte of memory", *in_full),
            ("descriptions by the API compared", *described),
            ("open terminals asked", *terminals),
            ("machines killed, sandbox back at its last durable pause", *set_back),
            ("machines killed, sandbox never paused and so lost", *never_paused),
            ("requests refused because the vault was full", *refused_for_room),
            ("slowest start of a server, ms", self.longest_server_start_ms),
            ("power cuts", u64::from(cut.cuts)),
            ("durable pauses and snapshots looked for after them", cut.claims),
            ("snapshots read in full after them", cut.verified),
            ("GiB read for that", gib),
            ("sandboxes resumed after them and compared", cut.resumed),
            ("slowest clone of the image, ms", cut.longest_clone_ms),
            ("duration, s", self.duration_s),
            ("**violations**", self.violations.len() as u64),
        ];
        let _ = writeln!(text, "\n| | |\n|---|---|");
        for (what, count) in rows {
            let _ = writeln!(text, "| {what} | {count} |");
        }
        for violation in &self.violations {
            let _ = writeln!(text, "\nViolation: {violation}");
        }
        text
    }

    /// As JSON for programs.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// `page` with this run's result in place of the last one's.
    pub(super) fn written_into(&self, page: &str) -> String {
        let options = match self.power_cuts.cuts {
            0 => String::new(),
            cuts => format!(" --power-cuts {cuts}"),
        };
        let result = format!(
            "{BEGIN}\n\n`torpor torture --cycles {} --seed {} --sandboxes {}{options}`, {}, on {} ({}):\n\n{}\n{END}",
            self.cycles,
            self.seed,
            self.sandboxes,
            self.begun.strftime("%Y-%m-%d"),
            self.machine,
            self.version,
            self.table()
        );
        match (page.find(BEGIN), page.find(END)) {
            (Some(begin), Some(end)) if begin < end => {
                format!("{}{result}{}", &page[..begin], &page[end + END.len()..])
            }
            _ => format!("{}\n\n{result}\n", page.trim_end()),
        }
    }
}

/// The processor, how many of it, and what executes guests.
pub(super) fn machine(accelerator: &str) -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let executed = match accelerator {
        "kvm" => "KVM",
        _ => "software emulation",
    };
    format!("{cores} × {model}, {executed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            begun: "2026-01-02T03:04:05Z".parse().unwrap(),
            seed: 7,
            sandboxes: 8,
            cycles: 3,
            actions: BTreeMap::from([(Action::Fork, 3)]),
            checks: Checks { compared: 24, ..Checks::default() },
            power_cuts: CutChecks::default(),
            violations: Vec::new(),
            duration_s: 60,
            longest_server_start_ms: 90,
            machine: "2 × Example".to_owned(),
            version: "torpor 0".to_owned(),
        }
    }

    #[test]
    fn the_result_takes_the_place_of_the_last_one_and_the_rest_of_the_page_stays() {
        let once = report().written_into("# Integrity\n\nWhat it is.\n");
        assert!(once.starts_with("# Integrity\n\nWhat it is.\n\n<!--"), "{once}");
        assert!(once.contains("| fork | 3 |") && once.contains("| **violations** | 0 |"), "{once}");
        let page = format!("{once}\nAfterwards.\n");
        assert_eq!(report().written_into(&page), page);
        let other = Report { violations: vec!["a lie".to_owned()], ..report() }.written_into(&page);
        assert!(other.contains("Violation: a lie") && other.ends_with("Afterwards.\n"), "{other}");
    }
}

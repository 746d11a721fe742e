//! `GET /telemetry`: what a sandbox tells its host while it runs. Reserved for the host, as `POST /init` is.
//!
//! The answer is a stream of lines, each one [`Telemetry`] as JSON, which ends with the machine:
//!
//! ```text
//! {"hello":{"bootId":"…"}}                                first, once
//! {"log":{"seq":1,"atUs":…,"level":"info",…}}             each entry the host has not seen, and those that follow
//! {"metrics":{"cpu_count":1,…}}                           at once, then every 5 s
//! {"work":{"open":1,"started":17}}                        at once, when it changes, and every 5 s
//! ```
//!
//! Log entries are numbered from 1 in each *boot* of the guest. The host says in [`TelemetryQuery`] what it has seen, so that
//! however often the stream breaks, and however often the sandbox is paused and resumed, no entry is lost or comes
//! twice. The guest keeps a bounded number of them; of those that did not fit an entry tells how many they were.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::http::Metrics;

/// The path.
pub const PATH: &str = "/telemetry";

/// Seconds between two metrics.
pub const METRICS_INTERVAL_S: u64 = 5;

/// What the host has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TelemetryQuery {
    /// The boot its last entry was of; in any other everything is new to it.
    pub boot_id: String,
    /// The number of that entry.
    pub after: u64,
}

/// One line of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Telemetry {
    /// The first line.
    #[serde(rename_all = "camelCase")]
    Hello {
        /// Another one for each boot of the guest, the same after a resume.
        boot_id: String,
    },
    /// Something happened, or was printed.
    Log(LogEntry),
    /// The use of resources at this moment.
    Metrics(Metrics),
    /// The commands and terminals at this moment.
    Work(Work),
}

/// Commands and terminals, of which the host has to know whether the sandbox is idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Those that run, whether or not a client follows them.
    pub open: u64,
    /// Those that were ever started in this boot, so that one that is over already is not overlooked.
    pub started: u64,
}

/// One entry of a sandbox's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogEntry {
    /// Its number, one more than that of the entry before.
    pub seq: u64,
    /// When, by the guest's clock, in microseconds since 1970.
    pub at_us: i64,
    /// How much it matters.
    pub level: LogLevel,
    /// Who says it: `agent`, or `process` for what processes print.
    pub logger: String,
    /// What.
    pub message: String,
    /// About what: `pid`, `cmd`, `stream`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
}

/// How much a log entry matters, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For those who look for a mistake.
    Debug,
    /// As intended.
    Info,
    /// Unexpected.
    Warn,
    /// Failed, or printed to standard error.
    Error,
}

// === impl LogLevel ===

impl LogLevel {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_what_it_is() {
        let entry = LogEntry {
            seq: 7,
            at_us: 1,
            level: LogLevel::Info,
            logger: "process".into(),
            message: "hi".into(),
            fields: BTreeMap::from([("pid".into(), "42".into())]),
        };
        let lines = [
            (Telemetry::Hello { boot_id: "b".into() }, r#"{"hello":{"bootId":"b"}}"#),
            (
                Telemetry::Log(entry),
                r#"{"log":{"seq":7,"atUs":1,"level":"info","logger":"process","message":"hi","fields":{"pid":"42"}}}"#,
            ),
        ];
        let work = (Telemetry::Work(Work { open: 1, started: 17 }), r#"{"work":{"open":1,"started":17}}"#);
        for (line, text) in lines.into_iter().chain([work]) {
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(serde_json::from_str::<Telemetry>(text).unwrap(), line);
        }
        assert!(LogLevel::Debug < LogLevel::Info && LogLevel::Warn < LogLevel::Error);
    }
}

//! `torpor sandbox logs` and `torpor sandbox metrics`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::api::{Api, quote, read, sandbox_path};
use super::{ClientError, say, say_json};

/// How often a server is asked for what is new.
const POLL: Duration = Duration::from_secs(1);

/// How often a sandbox is measured.
const MEASURED: Duration = Duration::from_secs(5);

/// Entries of one answer, as many as a server gives.
const PAGE: u16 = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Id of the sandbox
    id: String,
    /// Go on printing what is new, until the sandbox is gone
    #[arg(long, short)]
    follow: bool,
    /// Only what matters at least so much
    #[arg(long, value_enum, default_value_t = Level::Debug)]
    level: Level,
    /// Only messages that have this text in them
    #[arg(long)]
    search: Option<String>,
    /// How many of the newest entries to print
    #[arg(long, short = 'n', default_value_t = PAGE, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Print what the machine's console shows instead: its kernel and its agent
    #[arg(long, conflicts_with_all = ["follow", "search"])]
    console: bool,
    /// Print JSON, one entry a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Metrics {
    /// Id of the sandbox
    id: String,
    /// Go on printing, until the sandbox is gone
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, one point a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Deserialize)]
struct Page {
    logs: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    timestamp: Timestamp,
    level: String,
    message: String,
    #[serde(default)]
    fields: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Point {
    timestamp: Timestamp,
    cpu_count: u32,
    cpu_used_pct: f32,
    mem_used: u64,
    mem_total: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

// === impl Level ===

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

// === impl Logs ===

impl Logs {
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        if self.console {
            let value: Value = api.get(&sandbox_path(&self.id, "/console")).await?;
            let console = value["console"].as_str().unwrap_or_default();
            return if self.json {
                say_json(&value)
            } else {
                console.lines().try_for_each(|line| say(&clean(line)))
            };
        }
        let mut page = self.page(api, &format!("direction=backward&limit={}", self.limit)).await?;
        page.reverse();
        // Entries of the newest millisecond that was seen: they come again with the next page.
        let mut shown: HashSet<String> = HashSet::new();
        let mut newest_ms = 0;
        loop {
            for value in page {
                let entry: Entry = read("an entry of the log", value.clone())?;
                let name = format!("{} {:?}", entry.timestamp, entry.fields.get("seq"));
                let ms = entry.timestamp.as_millisecond();
                if ms > newest_ms {
                    newest_ms = ms;
                    shown.clear();
                }
                if shown.insert(name) {
                    say(&if self.json { value.to_string() } else { show_entry(&entry) })?;
                }
            }
            if !self.follow {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
            page = match self.page(api, &format!("cursor={newest_ms}")).await {
                Err(ClientError::Refused { status: 404, .. }) => return Ok(()),
                page => page?,
            };
        }
    }

    async fn page(&self, api: &Api, query: &str) -> Result<Vec<Value>, ClientError> {
        let search =
            self.search.as_deref().map(|text| format!("&search={}", quote(text))).unwrap_or_default();
        let path =
            format!("/v2{}?level={}&{query}{search}", sandbox_path(&self.id, "/logs"), self.level.as_str());
        Ok(api.get::<Page>(&path).await?.logs)
    }
}

fn show_entry(entry: &Entry) -> String {
    let field = |name: &str| entry.fields.get(name).map(String::as_str);
    let who = match (field("pid"), field("logger")) {
        (Some(pid), Some(logger)) => format!("{logger}[{pid}]"),
        (None, Some(logger)) => logger.to_owned(),
        _ => "-".to_owned(),
    };
    let time = entry.timestamp.strftime("%Y-%m-%d %H:%M:%S%.3f");
    format!("{time} {:<5} {} {}", entry.level.to_uppercase(), clean(&who), clean(&entry.message))
}

/// Without what could move a terminal's cursor or change its colours.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

// === impl Metrics ===

impl Metrics {
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        if !self.json {
            say(&format!(
                "{:<19}  {:>6}  {:>15}  {:>9}  {:>17}",
                "TIME (UTC)", "CPU", "MEMORY", "CACHE", "DISK"
            ))?;
        }
        let mut newest = i64::MIN;
        loop {
            let query = if newest == i64::MIN { String::new() } else { format!("?start={newest}") };
            let points: Vec<Value> = match api.get(&sandbox_path(&self.id, &format!("/metrics{query}"))).await
            {
                Err(ClientError::Refused { status: 404, .. }) if newest != i64::MIN => return Ok(()),
                points => points?,
            };
            for value in points {
                let point: Point = read("a point of the metrics", value.clone())?;
                // The start is included, and so comes again.
                if point.timestamp.as_second() > newest {
                    newest = point.timestamp.as_second();
                    say(&if self.json { value.to_string() } else { show_point(&point) })?;
                }
            }
            if !self.follow {
                return Ok(());
            }
            tokio::time::sleep(MEASURED).await;
        }
    }
}

fn show_point(point: &Point) -> String {
    const MIB: u64 = 1 << 20;
    let memory = format!("{} of {} MiB", point.mem_used / MIB, point.mem_total / MIB);
    let disk = format!("{} of {} MiB", point.disk_used / MIB, point.disk_total / MIB);
    let cpu = format!("{:.1} %", point.cpu_used_pct * point.cpu_count as f32);
    let cache = format!("{} MiB", point.mem_cache / MIB);
    format!(
        "{:<19}  {cpu:>6}  {memory:>15}  {cache:>9}  {disk:>17}",
        point.timestamp.strftime("%Y-%m-%d %H:%M:%S")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_and_points_read_well_and_cannot_move_the_cursor() {
        let entry = |level: &str, message: &str, fields: Value| {
            let value = json!({"timestamp": "2026-01-31T12:00:00.123456Z", "level": level, "message": message,
                "fields": fields});
            show_entry(&read("a test", value).unwrap())
        };
        let point = json!({"timestamp": "2026-01-31T12:00:00.5Z", "timestampUnix": 1769860800, "cpuCount": 2,
            "cpuUsedPct": 12.34, "memUsed": 104857600, "memTotal": 510000000, "memCache": 30000000,
            "diskUsed": 1181116006, "diskTotal": 8589934592u64});
        let lines = [
            entry("info", "a\tb\u{1b}[31mc", json!({"logger": "process", "pid": "42", "stream": "stdout"})),
            entry("warn", "too much", json!({"logger": "agent"})),
            show_point(&read("a test", point).unwrap()),
        ];
        insta::assert_snapshot!(lines.join("\n"));
    }
}

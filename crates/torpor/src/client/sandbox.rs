//! `torpor sandbox`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::api::{Api, SandboxInfo, quote, read, sandbox_path};
use super::exec::Exec;
use super::shell::Shell;
use super::table::{age, remaining, table};
use super::telemetry::{Logs, Metrics};
use super::{ClientError, EXIT_NOT_RUN, Endpoint, say, say_json};
use crate::settings::days;

/// Sandboxes: create, use, pause, resume, kill
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub(crate) struct SandboxCommand {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Create a sandbox and print its id
    Create(Create),
    /// List running and paused sandboxes, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// Show one sandbox
    Info {
        /// Id of the sandbox
        id: String,
        /// Print JSON instead
        #[arg(long)]
        json: bool,
    },
    /// Run a program in a sandbox; input and output are passed through, its exit code becomes ours
    Exec(Exec),
    /// Open a shell in a sandbox
    Shell(Shell),
    /// Pause: files, memory and running programs are kept
    Pause {
        /// Ids of the sandboxes
        #[arg(required = true)]
        ids: Vec<String>,
        /// Answer only when the pause would survive a power cut
        #[arg(long)]
        wait_durable: bool,
        /// Keep the files alone: running programs are lost, and a resume boots
        #[arg(long)]
        disk_only: bool,
    },
    /// Make new sandboxes that go on where a running one is; prints their ids
    Fork {
        /// Id of the running sandbox
        id: String,
        /// How many
        #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
        count: u32,
        /// Seconds they live
        #[arg(long, short, default_value_t = 300)]
        timeout: u32,
        /// Print JSON (with the access tokens) instead of bare ids
        #[arg(long)]
        json: bool,
    },
    /// Resume; on a running sandbox only its deadline may move, to a later time
    Resume {
        /// Ids of the sandboxes
        #[arg(required = true)]
        ids: Vec<String>,
        /// Seconds to live from now on
        #[arg(long, short, default_value_t = 300)]
        timeout: u32,
        /// Boot from the disk as it was when it was paused: what ran is lost, and what it had not written to the disk. For
        /// a sandbox whose memory does not fit this host
        #[arg(long)]
        boot: bool,
    },
    /// Kill: the sandbox and everything in it is gone
    Kill {
        /// Ids of the sandboxes
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// Every sandbox, running and paused
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Print what happened in a sandbox and what its processes printed
    Logs(Logs),
    /// Print a sandbox's use of processor, memory and disk
    Metrics(Metrics),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Name or id of the template
    #[arg(default_value = "base")]
    template: String,
    /// Seconds to live
    #[arg(long, short, default_value_t = 300)]
    timeout: u32,
    /// What happens then
    #[arg(long, value_enum, default_value_t = OnTimeout::Kill)]
    on_timeout: OnTimeout,
    /// Seconds without work (a command, a terminal, a long connection) after which the same happens [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    idle_timeout: Option<u32>,
    /// Days for which it is kept paused before it is removed, 0 for ever [default: as the server or the team says]
    #[arg(long, value_name = "DAYS", value_parser = days())]
    retention_days: Option<u32>,
    /// Text to find it by later; may be given several times
    #[arg(long, short, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    /// Environment variable of everything started in it; may be given several times
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<Pair>,
    /// Keep it away from the internet
    #[arg(long)]
    no_internet: bool,
    /// Print JSON (with the access token) instead of the bare id
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only those in this state
    #[arg(long, short, value_enum)]
    state: Option<State>,
    /// Only those with this metadata; may be given several times, all must match
    #[arg(long, short, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    /// Only those of this template
    #[arg(long, short)]
    template: Option<String>,
    /// Print JSON instead of a table
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print ids only
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnTimeout {
    Kill,
    Pause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum State {
    Running,
    Paused,
}

/// `KEY=VALUE`. The value may be empty and may hold `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair(pub(super) String, pub(super) String);

// === impl Pair ===

impl FromStr for Pair {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self(key.to_owned(), value.to_owned())),
            _ => Err("it must be of the form KEY=VALUE"),
        }
    }
}

// === impl SandboxCommand ===

impl SandboxCommand {
    /// Does what was asked. `data_dir` is where a key for this host's server may be.
    pub(crate) async fn run(self, data_dir: &Path) -> Result<ExitCode, ClientError> {
        let api = self.endpoint.api(data_dir)?;
        let done = match self.action {
            Action::Exec(exec) => return Ok(exit_code(exec.run(&api).await)),
            Action::Shell(shell) => return Ok(exit_code(shell.run(&api).await)),
            Action::Create(create) => create.run(&api).await,
            Action::List(list) => list.run(&api).await,
            Action::Info { id, json } => info(&api, &id, json).await,
            Action::Fork { id, count, timeout, json } => fork(&api, &id, count, timeout, json).await,
            Action::Pause { ids, wait_durable, disk_only } => {
                let body = json!({ "waitDurable": wait_durable, "memory": !disk_only });
                each(ids, async |id: &str| {
                    api.post(&sandbox_path(id, "/pause"), body.clone()).await.map(drop)
                })
                .await
            }
            Action::Resume { ids, timeout, boot } => {
                let body = json!({ "timeout": timeout, "memory": !boot });
                each(ids, async |id: &str| {
                    api.post(&format!("/v2{}", sandbox_path(id, "/connect")), body.clone()).await.map(drop)
                })
                .await
            }
            Action::Kill { ids, all } => {
                let ids = if all { ids_of(&api.list("").await?) } else { ids };
                each(ids, async |id: &str| api.delete(&sandbox_path(id, "")).await).await
            }
            Action::Logs(logs) => logs.run(&api).await,
            Action::Metrics(metrics) => metrics.run(&api).await,
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

/// The program's own code, or 125 after saying why it was not run to its end.
fn exit_code(result: Result<u8, ClientError>) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|error| {
        eprintln!("torpor: {error}");
        EXIT_NOT_RUN
    }))
}

/// Does it for one id after the other, prints those done, reports those that failed and goes on.
pub(super) async fn each(
    ids: Vec<String>,
    act: impl AsyncFn(&str) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    if let [only] = ids.as_slice() {
        act(only).await?;
        return say(only);
    }
    let mut failed = 0;
    for id in &ids {
        match act(id).await {
            Ok(()) => say(id)?,
            Err(error @ (ClientError::NoAnswer { .. } | ClientError::Refused { status: 401, .. })) => {
                return Err(error);
            }
            Err(error) => {
                failed += 1;
                eprintln!("torpor: {id}: {error}");
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(ClientError::Some { failed, all: ids.len() }) }
}

fn ids_of(sandboxes: &[Value]) -> Vec<String> {
    sandboxes.iter().filter_map(|sandbox| sandbox["sandboxID"].as_str()).map(str::to_owned).collect()
}

// === impl Create ===

impl Create {
    async fn run(self, api: &Api) -> Result<(), ClientError> {
        let map = |pairs: Vec<Pair>| pairs.into_iter().map(|Pair(k, v)| (k, v)).collect::<BTreeMap<_, _>>();
        let body = json!({
            "templateID": self.template,
            "timeout": self.timeout,
            "autoPause": self.on_timeout == OnTimeout::Pause,
            "idleTimeout": self.idle_timeout,
            "retentionDays": self.retention_days,
            "allow_internet_access": !self.no_internet,
            "metadata": map(self.metadata),
            "envVars": map(self.env),
        });
        let (_, sandbox) = api.post("/v2/sandboxes", body).await?;
        match sandbox["sandboxID"].as_str() {
            _ if self.json => say_json(&sandbox),
            Some(id) => say(id),
            None => Err(ClientError::Unreadable {
                what: "POST /v2/sandboxes".to_owned(),
                why: "there is no sandboxID in it".to_owned(),
            }),
        }
    }
}

// === impl List ===

impl List {
    async fn run(self, api: &Api) -> Result<(), ClientError> {
        let sandboxes = api.list(&self.query()).await?;
        if self.json {
            return say_json(&sandboxes);
        }
        if self.quiet {
            return ids_of(&sandboxes).iter().try_for_each(|id| say(id));
        }
        let sandboxes: Vec<SandboxInfo> = read("GET /v2/sandboxes", Value::Array(sandboxes))?;
        say(&show_list(&sandboxes, Timestamp::now()))
    }

    fn query(&self) -> String {
        let mut query = Vec::new();
        if let Some(state) = self.state {
            query.push(format!("state={}", if state == State::Running { "running" } else { "paused" }));
        }
        if let Some(template) = &self.template {
            query.push(format!("template={}", quote(template)));
        }
        if !self.metadata.is_empty() {
            // Three layers, as every client of this protocol: keys and values, pairs, the whole.
            let pair = |Pair(key, value): &Pair| format!("{}={}", quote(&quote(key)), quote(&quote(value)));
            let pairs: Vec<String> = self.metadata.iter().map(pair).collect();
            query.push(format!("metadata={}", quote(&pairs.join("&"))));
        }
        query.join("&")
    }
}

fn show_list(sandboxes: &[SandboxInfo], now: Timestamp) -> String {
    let row = |sandbox: &SandboxInfo| {
        [
            sandbox.id.clone(),
            sandbox.alias.clone().unwrap_or_else(|| sandbox.template_id.clone()),
            sandbox.state.clone(),
            sandbox.cpu_count.to_string(),
            format!("{} MiB", sandbox.memory_mib),
            age(sandbox.started_at, now),
            ends(sandbox, now),
            pairs(&sandbox.metadata),
        ]
    };
    let rows: Vec<_> = sandboxes.iter().map(row).collect();
    table(["ID", "TEMPLATE", "STATE", "VCPUS", "MEMORY", "STARTED", "ENDS", "METADATA"], &rows)
}

/// When it expires, or, paused, is removed.
fn ends(sandbox: &SandboxInfo, now: Timestamp) -> String {
    match (sandbox.state.as_str(), sandbox.kept_until) {
        ("paused", Some(until)) => remaining(until, now),
        ("paused", None) => "never".to_owned(),
        _ => remaining(sandbox.end_at, now),
    }
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

async fn info(api: &Api, id: &str, json: bool) -> Result<(), ClientError> {
    let (sandbox, value) = api.sandbox(id).await?;
    if json { say_json(&value) } else { say(&show_info(&sandbox, Timestamp::now())) }
}

fn show_info(sandbox: &SandboxInfo, now: Timestamp) -> String {
    let paused = sandbox.state == "paused";
    let ends = if paused { "Paused" } else { "Ends" };
    let at = if paused { age(sandbox.end_at, now) } else { remaining(sandbox.end_at, now) };
    let template = sandbox.alias.clone().unwrap_or_default();
    let size = format!(
        "{} vCPU, {} MiB memory, {} MiB disk",
        sandbox.cpu_count, sandbox.memory_mib, sandbox.disk_mib
    );
    let mut lines = vec![
        ("Id", sandbox.id.clone()),
        ("State", sandbox.state.clone()),
        ("Template", format!("{template} ({})", sandbox.template_id)),
        ("Size", size),
        ("Started", format!("{} ({})", sandbox.started_at, age(sandbox.started_at, now))),
        (ends, format!("{} ({at})", sandbox.end_at)),
    ];
    if paused {
        let until = sandbox.kept_until.map(|until| format!("{until} ({})", remaining(until, now)));
        lines.push(("Kept until", until.unwrap_or_else(|| "it is killed".to_owned())));
    }
    if let Some(durable) = sandbox.durable {
        lines.push(("Durable", if durable { "yes" } else { "not yet: it is being written" }.to_owned()));
    }
    if let Some(seconds) = sandbox.idle_timeout {
        lines.push(("Idle", format!("it ends after {seconds} s without work")));
    }
    if let Some(why) = &sandbox.held_up {
        lines.push(("Held up", why.clone()));
    }
    if !sandbox.metadata.is_empty() {
        lines.push(("Metadata", pairs(&sandbox.metadata)));
    }
    lines.iter().map(|(name, value)| format!("{name:<12}{value}")).collect::<Vec<_>>().join("\n")
}

async fn fork(api: &Api, id: &str, count: u32, timeout_s: u32, json: bool) -> Result<(), ClientError> {
    let path = sandbox_path(id, "/fork");
    let (_, children) = api.post(&path, json!({ "count": count, "timeout": timeout_s })).await?;
    if json {
        return say_json(&children);
    }
    let mut failed = 0;
    for child in children.as_array().into_iter().flatten() {
        match child["sandbox"]["sandboxID"].as_str() {
            Some(id) => say(id)?,
            None => {
                failed += 1;
                eprintln!("torpor: {}", child["error"]["message"].as_str().unwrap_or("a child was not made"));
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(ClientError::Some { failed, all: count as usize }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, state: &str) -> SandboxInfo {
        read(
            "a test",
            json!({
                "sandboxID": id, "templateID": "tbase", "alias": "base", "state": state,
                "startedAt": "2026-01-31T11:00:00.000000Z", "endAt": "2026-01-31T12:05:00.000000Z",
                "cpuCount": 1, "memoryMB": 512, "diskSizeMB": 8192, "metadata": {"app": "prod", "user": "1"},
                "keptUntil": (id == "ixyz").then_some("2026-03-02T12:05:00.000000Z"),
                "durable": (state == "paused").then_some(false), "idleTimeout": (state == "running").then_some(300),
                "heldUp": (state == "running").then_some("the vault is full"), "envdVersion": "0.6.13", "clientID": "0",
            }),
        )
        .unwrap()
    }

    #[test]
    fn the_list_and_the_detail_read_well() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-01-31T12:10:00Z".parse().unwrap();
        let all = [sandbox("iabcdefghij0123456789", "running"), sandbox("ixyz", "paused")];
        insta::assert_snapshot!(show_list(&all, now));
        insta::assert_snapshot!(format!("{}\n\n{}", show_info(&all[0], now), show_info(&all[1], later)));
    }

    #[test]
    fn pairs_may_hold_what_they_like_behind_the_first_equals_sign() {
        assert_eq!("a=b=c".parse(), Ok(Pair("a".into(), "b=c".into())));
        assert_eq!("a=".parse(), Ok(Pair("a".into(), String::new())));
        assert!("=b".parse::<Pair>().is_err());
        assert!("a".parse::<Pair>().is_err());
    }

    #[test]
    fn the_filter_by_metadata_is_encoded_as_the_server_decodes_it() {
        let list = List {
            state: Some(State::Paused),
            metadata: vec![Pair("a b".into(), "c&d".into())],
            template: None,
            json: false,
            quiet: false,
        };
        assert_eq!(list.query(), "state=paused&metadata=a%252520b%3Dc%252526d");
    }
}

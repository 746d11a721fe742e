//! What the agent tells the host: the log and the metrics, as one stream.

use futures::StreamExt;
use http_body_util::BodyExt;
use torpor_envd_api::process::Signal;
use torpor_envd_api::telemetry::{LogEntry, LogLevel, Telemetry, Work};

use crate::support::{Agent, run, shell, signal, started};

/// A stream of telemetry, line by line.
struct Told {
    chunks: http_body_util::BodyDataStream<hyper::body::Incoming>,
    unread: Vec<u8>,
}

impl Told {
    async fn open(agent: &Agent, query: &str) -> Self {
        let response = agent.raw("GET", &format!("/telemetry{query}"), &[], "").await;
        assert_eq!(response.status(), 200);
        Self { chunks: response.into_body().into_data_stream(), unread: Vec::new() }
    }

    /// The next line; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Telemetry> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            self.unread.extend_from_slice(&self.chunks.next().await?.ok()?);
        }
    }

    async fn hello(&mut self) -> String {
        match self.next().await {
            Some(Telemetry::Hello { boot_id }) => boot_id,
            other => panic!("hello comes first, not {other:?}"),
        }
    }

    async fn next_work(&mut self) -> Work {
        loop {
            match self.next().await {
                Some(Telemetry::Work(work)) => return work,
                Some(_) => {}
                None => panic!("the stream ended"),
            }
        }
    }

    async fn work_until(&mut self, wanted: Work) {
        while self.next_work().await != wanted {}
    }

    /// Entries up to and with the first whose message begins so.
    async fn entries_until(&mut self, message: &str) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        while let Some(line) = self.next().await {
            if let Telemetry::Log(entry) = line {
                let is_last = entry.message.starts_with(message);
                entries.push(entry);
                if is_last {
                    return entries;
                }
            }
        }
        panic!("the stream ended before {message:?}: {entries:?}");
    }
}

#[tokio::test]
async fn what_a_process_prints_is_told_line_by_line_with_what_it_is() {
    let agent = Agent::start().await;
    run(&agent.client(), shell("printf 'one\ntwo'; echo oops >&2; exit 3")).await.unwrap();
    let mut told = Told::open(&agent, "").await;
    told.hello().await;
    let entries = told.entries_until("process ended").await;
    let shown: Vec<_> = entries
        .iter()
        .map(|entry| {
            let stream = entry.fields.get("stream").map_or("", String::as_str);
            (entry.level, entry.logger.as_str(), entry.message.as_str(), stream)
        })
        .collect();
    for expected in [
        (LogLevel::Info, "agent", "process started", ""),
        (LogLevel::Info, "process", "one", "stdout"),
        (LogLevel::Info, "process", "two", "stdout"),
        (LogLevel::Error, "process", "oops", "stderr"),
        (LogLevel::Info, "agent", "process ended: exit status 3", ""),
    ] {
        assert!(shown.contains(&expected), "{expected:?} is not in {shown:?}");
    }
    assert!(entries.iter().skip(1).all(|entry| entry.fields.contains_key("pid")), "{entries:?}");
    assert!(entries.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1), "{entries:?}");
}

#[tokio::test]
async fn a_stream_opened_anew_goes_on_behind_what_the_host_has_seen() {
    let agent = Agent::start().await;
    run(&agent.client(), shell("echo first")).await.unwrap();
    let mut told = Told::open(&agent, "").await;
    let boot_id = told.hello().await;
    let seen = told.entries_until("process ended").await.last().unwrap().seq;
    drop(told);
    run(&agent.client(), shell("echo second")).await.unwrap();
    let mut told = Told::open(&agent, &format!("?bootId={boot_id}&after={seen}")).await;
    told.hello().await;
    let messages: Vec<String> =
        told.entries_until("process ended").await.into_iter().map(|entry| entry.message).collect();
    assert_eq!(messages, ["process started", "second", "process ended: exit status 0"]);
    let mut after_a_boot = Told::open(&agent, &format!("?bootId=another&after={seen}")).await;
    after_a_boot.hello().await;
    assert_eq!(after_a_boot.entries_until("").await[0].seq, 1);
}

#[tokio::test]
async fn there_is_one_stream_and_metrics_come_on_it_at_once() {
    let agent = Agent::start().await;
    let mut first = Told::open(&agent, "").await;
    first.hello().await;
    let mut second = Told::open(&agent, "").await;
    while first.next().await.is_some() {}
    loop {
        match second.next().await.expect("the newer stream goes on") {
            Telemetry::Metrics(metrics) => break assert!(metrics.mem_total > 0 && metrics.cpu_count > 0),
            Telemetry::Hello { .. } | Telemetry::Log(_) | Telemetry::Work(_) => {}
        }
    }
}

#[tokio::test]
async fn commands_are_counted_while_they_run_also_when_no_client_follows_them() {
    let agent = Agent::start().await;
    let mut told = Told::open(&agent, "").await;
    told.hello().await;
    assert_eq!(told.next_work().await, Work { open: 0, started: 0 });
    let client = agent.client();
    let (pid, events) = started(&client, shell("sleep 1000")).await;
    drop(events);
    told.work_until(Work { open: 1, started: 1 }).await;
    run(&client, shell("true")).await.unwrap();
    told.work_until(Work { open: 1, started: 2 }).await;
    client.send_signal(signal(pid, Signal::SIGNAL_SIGKILL)).await.unwrap();
    told.work_until(Work { open: 0, started: 2 }).await;
}

#[tokio::test]
async fn a_sandbox_is_not_told_of_what_happened_in_the_one_it_was_made_from() {
    let agent = Agent::start().await;
    run(&agent.client(), shell("echo of the template")).await.unwrap();
    assert_eq!(agent.post("/init", r#"{"sandboxId":"child"}"#).await.0, 204);
    let mut told = Told::open(&agent, "").await;
    told.hello().await;
    let entries = told.entries_until("sandbox").await;
    assert_eq!((entries.len(), entries[0].message.as_str()), (1, "sandbox started"));
    assert_eq!(agent.post("/init", r#"{"lifecycleID":"second run"}"#).await.0, 204);
    assert_eq!(told.entries_until("sandbox").await[0].message, "sandbox resumed");
}

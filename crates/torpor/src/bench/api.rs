//! A client that measures: every call returns how long its caller waited, and what the server says of the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use torpor_envd_api::ENVD_PORT;
use torpor_envd_api::process::process_event::Event;
use torpor_envd_api::process::process_event::data_event::Output;
use torpor_envd_api::process::{ProcessConfig, StartRequest, StartResponse};

use crate::link::{Answer, Link, NoAnswer, ToPort, text_of};

pub(crate) use crate::link::Handle;

/// A call did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// No answer.
    #[error("{0}. Does a server listen there (torpor serve)?")]
    NoAnswer(#[from] NoAnswer),
    /// An answer that is an error.
    #[error("{what} was answered {status}: {body}")]
    Refused { what: String, status: u16, body: String },
    /// An answer that is not one.
    #[error("a sandbox was created that has no id: {0}")]
    NoId(Value),
    /// A command in the sandbox failed.
    #[error("the command `{command}` in the sandbox failed: {why}")]
    Command { command: String, why: String },
}

/// An answer, and the time it took.
pub(crate) struct Timed {
    /// The body; null if there was none.
    pub(crate) body: Value,
    /// From before sending to the last byte.
    pub(crate) waited: Duration,
    /// The server's `Server-Timing`: milliseconds by step.
    pub(crate) steps: BTreeMap<String, f64>,
    /// Names the next page of a listing.
    pub(crate) next_token: Option<String>,
}

/// One server, one key.
#[derive(Clone)]
pub(crate) struct Api {
    link: Link,
}

// === impl Api ===

impl Api {
    pub(crate) fn new(url: &str, key: &str) -> Api {
        Api { link: Link::new(url.trim_end_matches('/').to_owned(), key.to_owned()) }
    }

    /// Creates a sandbox that lives for an hour.
    pub(crate) async fn create(&self, template: &str) -> Result<(Handle, Timed), ApiError> {
        let body = json!({ "templateID": template, "timeout": 3600 });
        let answer = self.call(Method::POST, "/v2/sandboxes", Some(body)).await?;
        match Handle::of(&answer.body) {
            Some(handle) => Ok((handle, answer)),
            None => Err(ApiError::NoId(answer.body)),
        }
    }

    /// How much memory it has.
    pub(crate) async fn memory_mib(&self, sandbox: &Handle) -> Result<u32, ApiError> {
        let detail = self.get(sandbox).await?;
        Ok(detail.body["memoryMB"].as_u64().and_then(|mib| u32::try_from(mib).ok()).unwrap_or_default())
    }

    /// Pauses it.
    pub(crate) async fn pause(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        self.call(Method::POST, &format!("/sandboxes/{}/pause", sandbox.id), None).await
    }

    /// Pauses it, and waits until that would survive a power cut.
    pub(crate) async fn pause_durably(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        self.call(Method::POST, &format!("/sandboxes/{}/pause?waitDurable=true", sandbox.id), None).await
    }

    /// Waits until its last pause is on disk.
    pub(crate) async fn wait_until_durable(&self, sandbox: &Handle) -> Result<(), ApiError> {
        while self.get(sandbox).await?.body["durable"] != json!(true) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Resumes it for an hour.
    pub(crate) async fn connect(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        let path = format!("/v2/sandboxes/{}/connect", sandbox.id);
        self.call(Method::POST, &path, Some(json!({ "timeout": 3600 }))).await
    }

    /// Takes a snapshot of it, and deletes that.
    pub(crate) async fn snapshot(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        let (id, answer) = self.take_snapshot(sandbox).await?;
        self.delete_snapshot(&id).await?;
        Ok(answer)
    }

    /// Takes a snapshot of it, and says by which id sandboxes are created from that.
    pub(crate) async fn take_snapshot(&self, sandbox: &Handle) -> Result<(String, Timed), ApiError> {
        let path = format!("/sandboxes/{}/snapshots", sandbox.id);
        let answer = self.call(Method::POST, &path, Some(json!({}))).await?;
        Ok((answer.body["snapshotID"].as_str().unwrap_or_default().to_owned(), answer))
    }

    /// Deletes a snapshot that was taken.
    pub(crate) async fn delete_snapshot(&self, id: &str) -> Result<(), ApiError> {
        self.call(Method::DELETE, &format!("/templates/{id}"), None).await.map(|_| ())
    }

    /// Describes it.
    pub(crate) async fn get(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        self.call(Method::GET, &format!("/sandboxes/{}", sandbox.id), None).await
    }

    /// One page of the list of sandboxes, running and paused: the first, or the one that the page before named.
    pub(crate) async fn list(&self, page: Option<&str>) -> Result<Timed, ApiError> {
        let query = page.map(|token| format!("?nextToken={token}")).unwrap_or_default();
        self.call(Method::GET, &format!("/v2/sandboxes{query}"), None).await
    }

    /// Destroys it.
    pub(crate) async fn kill(&self, sandbox: &Handle) -> Result<(), ApiError> {
        self.call(Method::DELETE, &format!("/sandboxes/{}", sandbox.id), None).await.map(|_| ())
    }

    /// Asks the agent in the sandbox whether it is well.
    pub(crate) async fn agent_health(&self, sandbox: &Handle) -> Result<Timed, ApiError> {
        let asked = self.link.ask(sandbox, ToPort::get(ENVD_PORT, "/health"));
        timed("GET /health in the sandbox", asked).await
    }

    /// Runs a shell command in the sandbox and returns what it printed.
    pub(crate) async fn run(&self, sandbox: &Handle, command: &str) -> Result<String, ApiError> {
        let failed = |why: String| ApiError::Command { command: command.to_owned(), why };
        let args = ["-l", "-c", command].map(str::to_owned).into();
        let process = ProcessConfig { cmd: "/bin/bash".to_owned(), args, ..Default::default() };
        let request = StartRequest { process: process.into(), stdin: Some(false), ..Default::default() };
        let started = self.link.processes(sandbox, None)?.start(request).await;
        let mut events = started.map_err(|error| failed(text_of(&error)))?;
        let mut output = Vec::new();
        while let Some(message) =
            events.message::<StartResponse>().await.map_err(|error| failed(text_of(&error)))?
        {
            match message.to_owned_message().event.into_option().and_then(|event| event.event) {
                Some(Event::Data(data)) => match data.output {
                    Some(Output::Stdout(bytes) | Output::Stderr(bytes) | Output::Pty(bytes)) => {
                        output.extend(bytes);
                    }
                    None => {}
                },
                Some(Event::End(end)) => {
                    let output = String::from_utf8_lossy(&output).into_owned();
                    return match end.exit_code {
                        0 => Ok(output),
                        code => Err(failed(format!("exit code {code}: {output}"))),
                    };
                }
                Some(Event::Start(_) | Event::Keepalive(_)) | None => {}
            }
        }
        let why = events.error().map_or_else(|| "it did not end".to_owned(), text_of);
        Err(failed(format!("{why}: {}", String::from_utf8_lossy(&output))))
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Timed, ApiError> {
        let what = format!("{method} {path}");
        timed(&what, self.link.call(method, path, body)).await
    }
}

/// Waits for an answer that has to be a good one.
async fn timed(what: &str, asked: impl Future<Output = Result<Answer, NoAnswer>>) -> Result<Timed, ApiError> {
    let started = Instant::now();
    let answer = asked.await?;
    let waited = started.elapsed();
    if !answer.is_success() {
        let body = String::from_utf8_lossy(&answer.bytes).into_owned();
        return Err(ApiError::Refused { what: what.to_owned(), status: answer.status, body });
    }
    let header = |name| answer.headers.get(name).and_then(|value| value.to_str().ok());
    let steps = header("server-timing").map(parse_steps).unwrap_or_default();
    let next_token = header("x-next-token").map(str::to_owned);
    Ok(Timed { body: answer.body, waited, steps, next_token })
}

/// The steps of a `Server-Timing` header, in milliseconds; a step that occurs twice is added up.
fn parse_steps(header: &str) -> BTreeMap<String, f64> {
    let mut steps = BTreeMap::new();
    for step in header.split(',') {
        if let Some((name, duration)) = step.trim().split_once(";dur=")
            && let Ok(ms) = duration.parse::<f64>()
        {
            *steps.entry(name.to_owned()).or_default() += ms;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_occur_twice_are_added_up_and_odd_ones_passed_over() {
        let steps = parse_steps("machine.stop;dur=1.5, cache;desc=hit, machine.stop;dur=0.25");
        assert_eq!(steps, BTreeMap::from([("machine.stop".to_owned(), 1.75)]));
    }
}

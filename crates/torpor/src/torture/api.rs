//! What the harness asks in its sandboxes.

use std::time::{Duration, Instant};

use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;
use torpor_envd_api::ENVD_PORT;
use torpor_envd_api::process::StartRequest;
use torpor_envd_api::process::process_event::Event;

use crate::link::{Answer, Handle, Link, NoAnswer, ToPort};

/// Where the checker listens in its sandbox.
pub(super) const CHECKER_PORT: u16 = 7007;

// === impl Link ===

impl Link {
    /// Asks the checker in a sandbox until it answers, at most for `limit`.
    pub(super) async fn ask_until_answered(
        &self,
        sandbox: &Handle,
        target: &str,
        limit: Duration,
    ) -> Result<Value, NoAnswer> {
        let deadline = Instant::now() + limit;
        loop {
            let asked = self.ask(sandbox, ToPort::get(CHECKER_PORT, target));
            let why = match tokio::time::timeout(limit, asked).await {
                Ok(Ok(answer)) if answer.status == 200 => return Ok(answer.body),
                Ok(Ok(answer)) => answer.to_string(),
                Ok(Err(error)) => error.why,
                Err(_) => format!("no answer within {limit:?}"),
            };
            if Instant::now() >= deadline {
                return Err(NoAnswer { what: format!("GET {target} in {}", sandbox.id), why });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Puts a file into a sandbox.
    pub(super) async fn upload(
        &self,
        sandbox: &Handle,
        path: &str,
        content: &'static [u8],
    ) -> Result<Answer, NoAnswer> {
        let target = format!("/files?path={path}&username=user");
        let upload = ToPort {
            port: ENVD_PORT,
            method: Method::POST,
            target: &target,
            content_type: "application/octet-stream",
            body: Bytes::from_static(content),
        };
        self.ask(sandbox, upload).await
    }

    /// Starts a program in a sandbox that nobody follows, and gives its process id.
    pub(super) async fn start(&self, sandbox: &Handle, program: StartRequest) -> Result<u32, NoAnswer> {
        let what = format!("starting a program in {}", sandbox.id);
        let failed = |error| NoAnswer::of_agent(&what, &error);
        let mut events = self.processes(sandbox, None)?.start(program).await.map_err(failed)?;
        let first = events.message::<torpor_envd_api::process::StartResponse>().await.map_err(failed)?;
        let first = first.and_then(|first| first.to_owned_message().event.into_option()?.event);
        match (first, events.error()) {
            (Some(Event::Start(start)), _) => Ok(start.pid),
            (_, Some(error)) => Err(NoAnswer::of_agent(&what, error)),
            (first, None) => Err(NoAnswer { what, why: format!("it did not begin with a start: {first:?}") }),
        }
    }
}

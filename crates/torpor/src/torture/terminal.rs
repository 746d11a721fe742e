//! The open terminal of a sandbox: a shell that keeps a variable, and nothing else does.

use std::time::Duration;

use serde_json::json;

use super::api::{Api, Handle, NoAnswer, base64_of, bytes_of};

/// How long a shell may take to say something.
const SHELL_LIMIT: Duration = Duration::from_secs(60);

/// Opens a terminal with a shell in it, and gives the shell's process id.
pub(super) async fn open(api: &Api, sandbox: &Handle) -> Result<u32, NoAnswer> {
    let request = json!({
        "process": { "cmd": "/bin/bash", "args": ["--norc", "--noprofile", "-i"], "envs": { "TERM": "dumb" } },
        "pty": { "size": { "cols": 200, "rows": 24 } },
    });
    let mut events = api.stream(sandbox, "/process.Process/Start", &request).await?;
    let first = within(events.next()).await??;
    let pid = first.as_ref().and_then(|event| event["event"]["start"]["pid"].as_u64());
    let pid = pid.and_then(|pid| u32::try_from(pid).ok());
    let pid = pid.ok_or_else(|| wrong(&format!("it did not begin with a start: {first:?}")))?;
    Ok(pid)
}

/// Types a line that changes the shell's variable by `number`, and reads its new value from the terminal.
pub(super) async fn change(api: &Api, sandbox: &Handle, pid: u32, number: u32) -> Result<i64, NoAnswer> {
    let selector = json!({ "process": { "pid": pid } });
    let mut events = api.stream(sandbox, "/process.Process/Connect", &selector).await?;
    // What is typed is echoed; only what is printed has the value between the marks.
    let line = format!("n=$((n * 6364136223846793005 + {number})); echo \"[{number}:\"\"$n]\"\n");
    let input = json!({ "process": { "pid": pid }, "input": { "pty": base64_of(line.as_bytes()) } });
    let answer = api.rpc(sandbox, "/process.Process/SendInput", &input).await?;
    if !answer.is_success() {
        return Err(wrong(&format!("typing was answered {answer}")));
    }
    let (begin, mut shown) = (format!("[{number}:"), String::new());
    let reading = async {
        loop {
            let Some(event) = events.next().await? else {
                return Err(wrong(&format!("it ended; it had shown {shown:?}")));
            };
            shown.push_str(&String::from_utf8_lossy(&bytes_of(&event["event"]["data"]["pty"])));
            let values = shown.split(&begin).skip(1);
            let mut values = values.filter_map(|rest| rest.split_once(']')?.0.parse::<i64>().ok());
            if let Some(value) = values.next() {
                return Ok(value);
            }
        }
    };
    within(reading).await?
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T, NoAnswer> {
    tokio::time::timeout(SHELL_LIMIT, future)
        .await
        .map_err(|_| wrong(&format!("it said nothing for {SHELL_LIMIT:?}")))
}

fn wrong(why: &str) -> NoAnswer {
    NoAnswer { what: "the open terminal".to_owned(), why: why.to_owned() }
}

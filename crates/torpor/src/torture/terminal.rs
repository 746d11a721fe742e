//! The open terminal of a sandbox: a shell that keeps a variable, and nothing else does.

use std::time::Duration;

use torpor_envd_api::process::process_event::Event;
use torpor_envd_api::process::process_event::data_event::Output;
use torpor_envd_api::process::process_input::Input;
use torpor_envd_api::process::process_selector::Selector;
use torpor_envd_api::process::{
    ConnectRequest, ConnectResponse, PTY, ProcessConfig, ProcessInput, ProcessSelector, SendInputRequest,
    StartRequest, pty,
};

use crate::link::{Handle, Link, NoAnswer, text_of};

/// How long a shell may take to say something.
const SHELL_LIMIT: Duration = Duration::from_secs(60);

/// Opens a terminal with a shell in it, and gives the shell's process id.
pub(super) async fn open(api: &Link, sandbox: &Handle) -> Result<u32, NoAnswer> {
    let shell = ProcessConfig {
        cmd: "/bin/bash".to_owned(),
        args: ["--norc", "--noprofile", "-i"].map(str::to_owned).into(),
        envs: [("TERM".to_owned(), "dumb".to_owned())].into_iter().collect(),
        ..Default::default()
    };
    let size = pty::Size { cols: 200, rows: 24, ..Default::default() };
    let terminal = PTY { size: size.into(), ..Default::default() };
    let request = StartRequest { process: shell.into(), pty: terminal.into(), ..Default::default() };
    within(api.start(sandbox, request)).await?
}

/// Types a line that changes the shell's variable by `number`, and reads its new value from the terminal.
pub(super) async fn change(api: &Link, sandbox: &Handle, pid: u32, number: u32) -> Result<i64, NoAnswer> {
    let failed = |error| NoAnswer::of_agent("the open terminal", &error);
    let client = api.processes(sandbox, None)?;
    let shell = || ProcessSelector { selector: Some(Selector::Pid(pid)), ..Default::default() };
    let request = ConnectRequest { process: shell().into(), ..Default::default() };
    let mut events = client.connect(request).await.map_err(failed)?;
    // What is typed is echoed; only what is printed has the value between the marks.
    let line = format!("n=$((n * 6364136223846793005 + {number})); echo \"[{number}:\"\"$n]\"\n");
    let input = ProcessInput { input: Some(Input::Pty(line.into_bytes())), ..Default::default() };
    let request = SendInputRequest { process: shell().into(), input: input.into(), ..Default::default() };
    client.send_input(request).await.map_err(failed)?;
    let (begin, mut shown) = (format!("[{number}:"), String::new());
    let reading = async {
        loop {
            let Some(message) = events.message::<ConnectResponse>().await.map_err(failed)? else {
                let why = events.error().map(text_of).unwrap_or_default();
                return Err(wrong(&format!("it ended; it had shown {shown:?}; {why}")));
            };
            let event = message.to_owned_message().event.into_option().and_then(|event| event.event);
            let Some(Event::Data(data)) = event else { continue };
            let Some(Output::Pty(bytes)) = data.output else { continue };
            shown.push_str(&String::from_utf8_lossy(&bytes));
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

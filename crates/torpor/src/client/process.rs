//! Programs in a sandbox: started, fed, followed to their end through the gateway.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use torpor_envd_api::connectrpc::client::{CallOptions, HttpClient, ServerStream};
use torpor_envd_api::connectrpc::{ConnectError, ErrorCode};
use torpor_envd_api::process::process_event::Event as WireEvent;
use torpor_envd_api::process::process_event::data_event::Output;
use torpor_envd_api::process::process_input::Input as WireInput;
use torpor_envd_api::process::process_selector::Selector;
use torpor_envd_api::process::{
    CloseStdinRequest, PTY, ProcessClient, ProcessConfig, ProcessInput, ProcessSelector, SendInputRequest,
    SendSignalRequest, Signal, StartRequest, StartResponse, StartResponseView, UpdateRequest, pty,
};

use super::ClientError;
use super::api::{Api, SandboxInfo};
use crate::link::{Handle, text_of};

/// How often, in seconds, the agent is to show that a silent stream lives.
const KEEPALIVE_S: &str = "50";

/// What to run.
#[derive(Debug, Clone, Default)]
pub(super) struct Program {
    pub(super) command: String,
    pub(super) args: Vec<String>,
    pub(super) envs: HashMap<String, String>,
    pub(super) cwd: Option<String>,
    /// The program reads what is sent; without, its standard input is empty.
    pub(super) stdin: bool,
    pub(super) terminal: Option<TerminalSize>,
    pub(super) user: Option<String>,
    /// Killed after this long.
    pub(super) timeout: Option<Duration>,
}

/// In character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TerminalSize {
    pub(super) columns: u16,
    pub(super) rows: u16,
}

/// Something a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// It wrote to standard output or to its terminal.
    Out(Vec<u8>),
    /// It wrote to standard error.
    Err(Vec<u8>),
    /// It is over; nothing follows.
    End(Ended),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) code: i32,
    /// By itself, not by a signal.
    pub(super) exited: bool,
    /// In words: `exit status 1`, `signal: killed`.
    pub(super) status: String,
}

/// A program whose output is followed.
pub(super) struct Running {
    input: Input,
    events: ServerStream<Incoming, StartResponseView<'static>>,
    api: Api,
    sandbox: String,
}

/// The way into a running program. Cheap to clone.
#[derive(Clone)]
pub(super) struct Input {
    client: ProcessClient<HttpClient>,
    pid: u32,
    is_terminal: bool,
}

// === impl Program ===

impl Program {
    /// Starts it; returns when it runs.
    pub(super) async fn start(self, api: &Api, sandbox: &SandboxInfo) -> Result<Running, ClientError> {
        let client = self.client(api, sandbox)?;
        let is_terminal = self.terminal.is_some();
        let mut options = CallOptions::default().with_header("keepalive-ping-interval", KEEPALIVE_S);
        if let Some(timeout) = self.timeout {
            options = options.with_timeout(timeout);
        }
        let config = ProcessConfig {
            cmd: self.command,
            args: self.args,
            envs: self.envs.into_iter().collect(),
            cwd: self.cwd,
            ..Default::default()
        };
        let mut request =
            StartRequest { process: config.into(), stdin: Some(self.stdin), ..Default::default() };
        if let Some(size) = self.terminal {
            request.pty = size.to_wire().into();
        }
        let events = client.start_with_options(request, options).await;
        let mut running = Running {
            events: events.map_err(|error| ClientError::Process(text_of(&error)))?,
            input: Input { client, pid: 0, is_terminal },
            api: api.clone(),
            sandbox: sandbox.id.clone(),
        };
        match running.next_on_the_wire().await? {
            Some(WireEvent::Start(start)) => {
                running.input.pid = start.pid;
                Ok(running)
            }
            _ => Err(ClientError::Process("the sandbox did not say that the program was started".to_owned())),
        }
    }

    fn client(&self, api: &Api, sandbox: &SandboxInfo) -> Result<ProcessClient<HttpClient>, ClientError> {
        let sandbox = Handle { id: sandbox.id.clone(), token: sandbox.envd_access_token.clone() };
        let authorization =
            self.user.as_ref().map(|user| format!("Basic {}", STANDARD.encode(format!("{user}:"))));
        api.link()
            .processes(&sandbox, authorization)
            .map_err(|_| ClientError::Url { url: api.link().url().to_owned(), why: "it is not a URL" })
    }
}

// === impl TerminalSize ===

impl TerminalSize {
    fn to_wire(self) -> PTY {
        let size = pty::Size { cols: self.columns.into(), rows: self.rows.into(), ..Default::default() };
        PTY { size: size.into(), ..Default::default() }
    }
}

// === impl Running ===

impl Running {
    pub(super) fn input(&self) -> Input {
        self.input.clone()
    }

    /// What it does next. An error if it cannot be followed to its end.
    pub(super) async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            match self.next_on_the_wire().await? {
                Some(WireEvent::Data(data)) => match data.output {
                    Some(Output::Stdout(bytes) | Output::Pty(bytes)) => return Ok(Event::Out(bytes)),
                    Some(Output::Stderr(bytes)) => return Ok(Event::Err(bytes)),
                    None => {}
                },
                Some(WireEvent::End(end)) => {
                    let ended = Ended { code: end.exit_code, exited: end.exited, status: end.status };
                    return Ok(Event::End(ended));
                }
                Some(WireEvent::Start(_) | WireEvent::Keepalive(_)) => {}
                None => return Err(self.lost("its output ended before it did".to_owned()).await),
            }
        }
    }

    async fn next_on_the_wire(&mut self) -> Result<Option<WireEvent>, ClientError> {
        match self.events.message::<StartResponse>().await {
            Ok(Some(message)) => {
                Ok(message.to_owned_message().event.into_option().and_then(|event| event.event))
            }
            Ok(None) => match self.events.error() {
                Some(error) => {
                    let error = error.clone();
                    Err(self.explain(&error).await)
                }
                None => Err(self.lost("its output ended before it did".to_owned()).await),
            },
            Err(error) => Err(self.explain(&error).await),
        }
    }

    /// Tells what the agent refused from what happened to the connection.
    async fn explain(&self, error: &ConnectError) -> ClientError {
        match error.code {
            ErrorCode::DeadlineExceeded => {
                ClientError::Process("the program was killed: its time (--timeout) was up".to_owned())
            }
            ErrorCode::InvalidArgument
            | ErrorCode::NotFound
            | ErrorCode::AlreadyExists
            | ErrorCode::PermissionDenied
            | ErrorCode::FailedPrecondition
            | ErrorCode::ResourceExhausted
            | ErrorCode::Unimplemented
            | ErrorCode::Unauthenticated => ClientError::Process(text_of(error)),
            _ => self.lost(text_of(error)).await,
        }
    }

    /// Says what became of the sandbox, if that is why the stream ended.
    async fn lost(&self, why: String) -> ClientError {
        let text = match self.api.sandbox(&self.sandbox).await {
            Ok((sandbox, _)) if sandbox.state == "paused" => format!(
                "the sandbox was paused; the program goes on when it is resumed (torpor sandbox resume {})",
                self.sandbox
            ),
            Err(ClientError::Refused { status: 404, .. }) => {
                "the sandbox was killed or reached the end of its life".to_owned()
            }
            _ => format!("the connection to the program broke off: {why}"),
        };
        ClientError::Process(text)
    }
}

// === impl Input ===

impl Input {
    /// Sends bytes to its standard input or terminal; returns when the agent has taken them.
    pub(super) async fn send(&self, bytes: Vec<u8>) -> Result<(), ConnectError> {
        let input = if self.is_terminal { WireInput::Pty(bytes) } else { WireInput::Stdin(bytes) };
        let input = ProcessInput { input: Some(input), ..Default::default() };
        let request =
            SendInputRequest { process: self.selector().into(), input: input.into(), ..Default::default() };
        self.client.send_input(request).await.map(|_| ())
    }

    /// Ends its standard input.
    pub(super) async fn close(&self) -> Result<(), ConnectError> {
        let request = CloseStdinRequest { process: self.selector().into(), ..Default::default() };
        self.client.close_stdin(request).await.map(|_| ())
    }

    /// Sends a signal.
    pub(super) async fn signal(&self, signal: Signal) -> Result<(), ConnectError> {
        let request = SendSignalRequest {
            process: self.selector().into(),
            signal: signal.into(),
            ..Default::default()
        };
        self.client.send_signal(request).await.map(|_| ())
    }

    /// Changes the size of its terminal.
    pub(super) async fn resize(&self, size: TerminalSize) -> Result<(), ConnectError> {
        let request = UpdateRequest {
            process: self.selector().into(),
            pty: size.to_wire().into(),
            ..Default::default()
        };
        self.client.update(request).await.map(|_| ())
    }

    fn selector(&self) -> ProcessSelector {
        ProcessSelector { selector: Some(Selector::Pid(self.pid)), ..Default::default() }
    }
}

// === impl Ended ===

impl Ended {
    /// The code a shell would give: its own, or 128 + the signal's number.
    pub(super) fn exit_code(&self) -> u8 {
        if self.exited {
            return u8::try_from(self.code & 0xff).unwrap_or(u8::MAX);
        }
        let name = self.status.trim_start_matches("signal: ").trim_end_matches(" (core dumped)");
        let number = match name {
            "hangup" => 1,
            "interrupt" => 2,
            "quit" => 3,
            "illegal instruction" => 4,
            "aborted" => 6,
            "bus error" => 7,
            "floating point exception" => 8,
            "killed" => 9,
            "segmentation fault" => 11,
            "broken pipe" => 13,
            "alarm clock" => 14,
            "terminated" => 15,
            _ => return u8::MAX,
        };
        128 + number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_a_shell_would_give() {
        let ended =
            |code, exited, status: &str| Ended { code, exited, status: status.to_owned() }.exit_code();
        assert_eq!(ended(0, true, "exit status 0"), 0);
        assert_eq!(ended(7, true, "exit status 7"), 7);
        assert_eq!(ended(-1, false, "signal: killed"), 137);
        assert_eq!(ended(-1, false, "signal: segmentation fault (core dumped)"), 139);
        assert_eq!(ended(-1, false, "signal: signal 40"), 255);
    }
}

//! An agent to test against, and words for what tests say to it.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioExecutor;
use torpor_envd_api::{
    connectrpc::{
        ConnectError,
        client::{CallOptions, ClientConfig, ClientTransport, HttpClient, ServerStream},
    },
    process::{
        __buffa::view::{ConnectResponseView, StartResponseView},
        ConnectRequest, ConnectResponse, PTY, ProcessClient, ProcessConfig, ProcessEvent, ProcessInput,
        ProcessSelector, SendInputRequest, SendSignalRequest, Signal, StartRequest, StartResponse,
        process_event::{EndEvent, Event, data_event::Output},
        process_input::Input,
        process_selector::Selector,
        pty::Size,
    },
};

pub(crate) type Client = ProcessClient<HttpClient>;

/// A running agent, which ends with the test.
pub(crate) struct Agent {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// What a stream carried from some point to its end.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) pty: Vec<u8>,
    pub(crate) keepalives: usize,
    pub(crate) end: Option<EndEvent>,
}

/// The events of one stream of `Start` or `Connect`.
pub(crate) enum Events {
    Start(Stream<StartResponseView<'static>>),
    Connect(Stream<ConnectResponseView<'static>>),
}

type Stream<View> = ServerStream<<HttpClient as ClientTransport>::ResponseBody, View>;

// === impl Agent ===

impl Agent {
    pub(crate) async fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_torpor-agent"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
        let agent = Self { child, address };
        let init = format!(r#"{{"defaultUser":"{}"}}"#, OwnUser::look_up().name);
        let (status, body) = agent.post("/init", &init).await;
        assert_eq!((status, body.as_str()), (204, ""));
        agent
    }

    /// A client with the binary codec.
    pub(crate) fn client(&self) -> Client {
        self.client_with(|config| config)
    }

    pub(crate) fn client_with(&self, change: impl FnOnce(ClientConfig) -> ClientConfig) -> Client {
        let config = ClientConfig::new(format!("http://{}", self.address).parse().unwrap());
        ProcessClient::new(HttpClient::plaintext(), change(config))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.request("POST", path, &[("content-type", "application/json")], body).await
    }

    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String) {
        let response = self.raw(method, path, headers, body).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> hyper::Response<hyper::body::Incoming> {
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{}{path}", self.address);
        let mut request = hyper::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        client.request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The agent's processes outlive it, and lead groups of their own.
        for child in children(self.pid()) {
            let _ = rustix::process::kill_process_group(child, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Events ===

impl Events {
    pub(crate) async fn start(
        client: &Client,
        request: StartRequest,
        options: CallOptions,
    ) -> Result<Self, ConnectError> {
        Ok(Self::Start(client.start_with_options(request, options).await?))
    }

    pub(crate) async fn connect(client: &Client, pid: u32) -> Result<Self, ConnectError> {
        Self::connect_to(client, by_pid(pid)).await
    }

    pub(crate) async fn connect_to(client: &Client, process: ProcessSelector) -> Result<Self, ConnectError> {
        let request = ConnectRequest { process: process.into(), ..Default::default() };
        Ok(Self::Connect(client.connect(request).await?))
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<ProcessEvent>, ConnectError> {
        let event = match self {
            Self::Start(stream) => {
                let message = stream.message::<StartResponse>().await?;
                let error = stream.error().cloned();
                (message.map(|message| message.to_owned_message().event), error)
            }
            Self::Connect(stream) => {
                let message = stream.message::<ConnectResponse>().await?;
                let error = stream.error().cloned();
                (message.map(|message| message.to_owned_message().event), error)
            }
        };
        match event {
            (Some(event), _) => Ok(Some(event.into_option().unwrap())),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }

    /// The first event has to be the start. A request that is refused says so here, as streams do.
    pub(crate) async fn first(&mut self) -> Result<u32, ConnectError> {
        match self.next().await?.unwrap().event {
            Some(Event::Start(start)) => Ok(start.pid),
            other => panic!("the first event is {other:?}"),
        }
    }

    /// The same of a request that is not refused.
    pub(crate) async fn pid(&mut self) -> u32 {
        self.first().await.unwrap()
    }

    /// Everything up to the end of the stream.
    pub(crate) async fn collect(&mut self) -> Result<Collected, ConnectError> {
        self.collect_until(|_| false).await
    }

    /// Everything up to the moment when `enough`.
    pub(crate) async fn collect_until(
        &mut self,
        enough: impl Fn(&Collected) -> bool,
    ) -> Result<Collected, ConnectError> {
        let mut collected = Collected::default();
        while !enough(&collected) {
            let Some(event) = self.next().await? else { break };
            assert!(collected.end.is_none(), "an event after the end: {event:?}");
            match event.event.unwrap() {
                Event::Start(start) => panic!("a second start: {start:?}"),
                Event::Keepalive(_) => collected.keepalives += 1,
                Event::End(end) => collected.end = Some(*end),
                Event::Data(data) => match data.output.unwrap() {
                    Output::Stdout(bytes) => collected.stdout.extend(bytes),
                    Output::Stderr(bytes) => collected.stderr.extend(bytes),
                    Output::Pty(bytes) => collected.pty.extend(bytes),
                },
            }
        }
        Ok(collected)
    }
}

// === impl Collected ===

impl Collected {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn status(&self) -> &str {
        &self.end.as_ref().expect("no end event").status
    }
}

pub(crate) fn by_pid(pid: u32) -> ProcessSelector {
    ProcessSelector { selector: Some(Selector::Pid(pid)), ..Default::default() }
}

pub(crate) fn by_tag(tag: &str) -> ProcessSelector {
    ProcessSelector { selector: Some(Selector::Tag(tag.into())), ..Default::default() }
}

/// A shell command without input, as SDKs start one, but without a login shell's profile.
pub(crate) fn shell(command: &str) -> StartRequest {
    StartRequest {
        process: ProcessConfig {
            cmd: "/bin/sh".into(),
            args: vec!["-c".into(), command.into()],
            ..Default::default()
        }
        .into(),
        stdin: Some(false),
        ..Default::default()
    }
}

pub(crate) fn terminal(cols: u32, rows: u32) -> PTY {
    PTY { size: Size { cols, rows, ..Default::default() }.into(), ..Default::default() }
}

/// Starts and follows to the end.
pub(crate) async fn run(client: &Client, request: StartRequest) -> Result<Collected, ConnectError> {
    let mut events = Events::start(client, request, CallOptions::default()).await?;
    events.first().await?;
    events.collect().await
}

pub(crate) async fn started(client: &Client, request: StartRequest) -> (u32, Events) {
    let mut events = Events::start(client, request, CallOptions::default()).await.unwrap();
    (events.pid().await, events)
}

pub(crate) fn input(pid: u32, input: Input) -> SendInputRequest {
    SendInputRequest {
        process: by_pid(pid).into(),
        input: ProcessInput { input: Some(input), ..Default::default() }.into(),
        ..Default::default()
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) -> SendSignalRequest {
    SendSignalRequest { process: by_pid(pid).into(), signal: signal.into(), ..Default::default() }
}

/// Whom the tests run as, and so the agent and its processes.
pub(crate) struct OwnUser {
    pub(crate) name: String,
    pub(crate) home: String,
}

impl OwnUser {
    pub(crate) fn look_up() -> Self {
        let uid = rustix::process::getuid().as_raw().to_string();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let own =
            passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|entry| entry[2] == uid);
        let own = own.unwrap();
        Self { name: own[0].into(), home: own[5].into() }
    }
}

/// What an event carries of a process's output.
pub(crate) fn output(event: &ProcessEvent) -> Option<&[u8]> {
    match &event.event {
        Some(Event::Data(data)) => match data.output.as_ref()? {
            Output::Stdout(bytes) | Output::Stderr(bytes) | Output::Pty(bytes) => Some(bytes),
        },
        _ => None,
    }
}

fn children(parent: u32) -> Vec<rustix::process::Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        fields.split(' ').nth(1) == Some(&parent.to_string())
    };
    pids.filter(is_child).filter_map(rustix::process::Pid::from_raw).collect()
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]), Some("Z" | "X")))
}

/// Waits until `done`; the test's own time limit ends a wait in vain.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

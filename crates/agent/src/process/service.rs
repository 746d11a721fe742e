//! The Connect service over the processes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::{StreamExt, stream};
use rustix::process::Signal as KernelSignal;
use torpor_envd_api::process::{
    self as wire, CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest,
    ListResponse, ProcessEvent, ProcessInfo, ProcessInput, ProcessSelector, SendInputRequest,
    SendInputResponse, SendSignalRequest, SendSignalResponse, StartRequest, StartResponse,
    StreamInputRequest, StreamInputResponse, UpdateRequest, UpdateResponse,
    process_event::{DataEvent, Event as WireEvent, KeepAlive, StartEvent, data_event},
    stream_input_request,
};

use super::{
    Processes,
    feed::{Channel, Event, Subscription},
    launch::Plan,
    registry::Process,
    terminal,
};
use crate::{
    auth,
    server::{Shared, keepalive_interval},
};

/// `process.Process`.
struct Service {
    state: Shared,
    processes: Arc<Processes>,
}

/// One stream of events to one client.
struct Follow {
    process: Arc<Process>,
    processes: Arc<Processes>,
    subscription: Subscription,
    keepalive: Duration,
    deadline: Option<Instant>,
    /// Whether the deadline is the process's too.
    owns_process: bool,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Starting,
    Running,
    Over,
}

/// Adds the service to a router.
pub fn register(router: connectrpc::Router, state: Shared, processes: Arc<Processes>) -> connectrpc::Router {
    router.add_service(Arc::new(Service { state, processes }))
}

// === impl Service ===

impl wire::Process for Service {
    async fn list(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<ListResponse> {
        let info = |process: Arc<Process>| ProcessInfo {
            config: process.config.clone().into(),
            pid: process.pid(),
            tag: process.tag.clone(),
            ..Default::default()
        };
        let processes = self.processes.running().into_iter().map(info).collect();
        Response::ok(ListResponse { processes, ..Default::default() })
    }

    async fn start(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<StartResponse>> {
        let user = auth::rpc_user(&self.state, context.headers())?;
        let plan = Plan::new(&self.state, user, request.to_owned_message(), context.deadline())?;
        let (process, subscription) = plan.launch(self.processes.clone()).await?;
        let follow = self.follow(&context, process, subscription, true);
        let response = |event: ProcessEvent| StartResponse { event: event.into(), ..Default::default() };
        Response::ok(follow.events().map(move |event| event.map(response)).boxed())
    }

    async fn connect(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<ConnectResponse>> {
        let process = self.processes.find_recent(&request.to_owned_message().process)?;
        let subscription = process.feed.subscribe();
        let follow = self.follow(&context, process, subscription, false);
        let response = |event: ProcessEvent| ConnectResponse { event: event.into(), ..Default::default() };
        Response::ok(follow.events().map(move |event| event.map(response)).boxed())
    }

    async fn update(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<UpdateResponse> {
        let request = request.to_owned_message();
        let process = self.processes.find_running(&request.process)?;
        if let Some(pty) = request.pty.as_option() {
            let Some(controller) = process.input.terminal() else {
                return Err(ConnectError::failed_precondition("tty not assigned to process"));
            };
            terminal::resize(controller, pty)
                .map_err(|error| ConnectError::internal(format!("resizing the terminal failed: {error}")))?;
        }
        Response::ok(UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        _context: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<StreamInputResponse> {
        let mut process = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(stream_input_request::Event::Start(start)) => {
                    process = Some(self.processes.find_running(&start.process)?);
                }
                Some(stream_input_request::Event::Data(data)) => {
                    let Some(process) = &process else {
                        return Err(ConnectError::invalid_argument(
                            "input came before the message that names the process: send start first",
                        ));
                    };
                    write(process, &data.input).await?;
                }
                Some(stream_input_request::Event::Keepalive(_)) | None => {}
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_input(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<SendInputResponse> {
        let request = request.to_owned_message();
        let process = self.processes.find_running(&request.process)?;
        write(&process, &request.input).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn send_signal(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<SendSignalResponse> {
        let request = request.to_owned_message();
        let process = self.processes.find_running(&request.process)?;
        let signal = match request.signal.as_known() {
            Some(wire::Signal::SIGNAL_SIGTERM) => KernelSignal::TERM,
            Some(wire::Signal::SIGNAL_SIGKILL) => KernelSignal::KILL,
            Some(wire::Signal::SIGNAL_UNSPECIFIED) | None => {
                return Err(ConnectError::invalid_argument(
                    "no known signal is named: give SIGNAL_SIGTERM or SIGNAL_SIGKILL",
                ));
            }
        };
        match self.processes.signal(&process, signal) {
            true => Response::ok(SendSignalResponse::default()),
            false => Err(ConnectError::not_found(format!("process with pid {} not found", process.pid()))),
        }
    }

    async fn close_stdin(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<CloseStdinResponse> {
        let process = self.find(&request.to_owned_message().process)?;
        process.input.close(&process.input_turn).await?;
        Response::ok(CloseStdinResponse::default())
    }
}

impl Service {
    fn find(&self, selector: &ProcessSelector) -> Result<Arc<Process>, ConnectError> {
        self.processes.find_running(selector)
    }

    fn follow(
        &self,
        context: &RequestContext,
        process: Arc<Process>,
        subscription: Subscription,
        owns_process: bool,
    ) -> Follow {
        Follow {
            process,
            processes: self.processes.clone(),
            subscription,
            keepalive: keepalive_interval(context.headers()),
            deadline: context.deadline(),
            owns_process,
            progress: Progress::Starting,
        }
    }
}

async fn write(process: &Process, input: &ProcessInput) -> Result<(), ConnectError> {
    Ok(process.input.write(&process.input_turn, input, process.exited.subscribe()).await?)
}

// === impl Follow ===

impl Follow {
    fn events(self) -> impl futures::Stream<Item = Result<ProcessEvent, ConnectError>> + Send + 'static {
        stream::unfold(self, |mut follow| async move {
            let event = follow.next().await?;
            Some((event, follow))
        })
    }

    async fn next(&mut self) -> Option<Result<ProcessEvent, ConnectError>> {
        match self.progress {
            Progress::Over => return None,
            Progress::Starting => {
                self.progress = Progress::Running;
                return Some(Ok(event(StartEvent { pid: self.process.pid(), ..Default::default() })));
            }
            Progress::Running => {}
        }
        let deadline = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = deadline => Some(Err(self.out_of_time())),
            next = self.subscription.next() => Some(self.pass_on(next)),
            () = tokio::time::sleep(self.keepalive) => Some(Ok(event(KeepAlive::default()))),
        }
    }

    fn pass_on(&mut self, next: Option<Event>) -> Result<ProcessEvent, ConnectError> {
        match next {
            Some(Event::Data(channel, bytes)) => {
                let bytes = bytes.to_vec();
                let output = match channel {
                    Channel::Stdout => data_event::Output::Stdout(bytes),
                    Channel::Stderr => data_event::Output::Stderr(bytes),
                    Channel::Terminal => data_event::Output::Pty(bytes),
                };
                Ok(event(DataEvent { output: Some(output), ..Default::default() }))
            }
            Some(Event::End(_)) if self.owns_process && self.process.timed_out() => Err(self.out_of_time()),
            Some(Event::End(end)) => {
                self.progress = Progress::Over;
                Ok(event(end.to_event()))
            }
            None => {
                self.progress = Progress::Over;
                Err(ConnectError::aborted(
                    "this stream was dropped because it took no output while others waited; the process goes on, \
                     connect to it again",
                ))
            }
        }
    }

    fn out_of_time(&mut self) -> ConnectError {
        self.progress = Progress::Over;
        if self.owns_process {
            self.processes.time_out(&self.process);
            return ConnectError::deadline_exceeded("the process ran longer than the timeout and was killed");
        }
        ConnectError::deadline_exceeded("the stream was open longer than the timeout; the process goes on")
    }
}

fn event(event: impl Into<WireEvent>) -> ProcessEvent {
    ProcessEvent { event: Some(event.into()), ..Default::default() }
}

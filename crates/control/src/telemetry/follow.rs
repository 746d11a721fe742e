//! Reading one agent's telemetry while its sandbox runs.
//!
//! The stream may break at any time (the guest is busy, the agent restarts); it is opened anew then, from where the log
//! ends. It ends for good with the run.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use torpor_envd_api::http::ACCESS_TOKEN_HEADER;
use torpor_envd_api::telemetry::{LogEntry, PATH, Telemetry};
use torpor_network::{AGENT_PORT, Connector};

use crate::lifecycle::Activity;

use super::recorder::{RecordError, Recording};

/// How long after its start an agent is left alone: what it has to say waits for it, and whoever started it does not.
/// An emulated guest that just woke takes long for its first steps, and takes them for one caller after the other.
const SETTLE: Duration = Duration::from_secs(1);

/// Metrics come every few seconds; a stream that is silent for so long is broken. Generous, because an emulated guest
/// under load is slow.
const SILENCE: Duration = Duration::from_secs(60);

/// How long to wait before a stream that broke is opened again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// No line is longer: an agent that sends such a one is not followed.
const MAX_LINE_BYTES: usize = 256 << 10;

/// Lines that are written at once.
const BATCH: usize = 256;

/// A stream ended.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    #[error("the connection broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the agent has no telemetry: it is of an older version")]
    Unsupported,
    #[error("the agent answered {0}")]
    Refused(u16),
    #[error("the agent was silent for {} s", SILENCE.as_secs())]
    Silent,
    #[error("a line cannot be read: {0}")]
    Line(#[from] tokio_util::codec::LinesCodecError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the request cannot be made: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("writing the log panicked")]
    Panicked,
}

/// Records what the agent tells until `closed`.
#[tracing::instrument(name = "telemetry", skip_all, fields(sandbox = %recording.id()))]
pub(super) async fn follow(
    recording: Recording,
    connector: Connector,
    access_token: Option<String>,
    closed: CancellationToken,
    activity: Arc<Activity>,
) {
    let mut delay = RETRY.0;
    tokio::select! {
        () = closed.cancelled() => return,
        () = tokio::time::sleep(SETTLE) => {}
    }
    loop {
        let mut told_something = false;
        let streaming =
            stream(&recording, &activity, &connector, access_token.as_deref(), &mut told_something);
        let ended = tokio::select! {
            () = closed.cancelled() => return,
            ended = streaming => ended,
        };
        match ended {
            Err(FollowError::Unsupported | FollowError::Record(RecordError::Overtaken)) => return,
            Err(error) => tracing::debug!(%error, "telemetry broke off"),
            Ok(()) => tracing::debug!("telemetry ended"),
        }
        delay = if told_something { RETRY.0 } else { (delay * 2).min(RETRY.1) };
        tokio::select! {
            () = closed.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
    }
}

async fn stream(
    recording: &Recording,
    activity: &Activity,
    connector: &Connector,
    access_token: Option<&str>,
    told_something: &mut bool,
) -> Result<(), FollowError> {
    let known = blocking(recording, |recording| recording.cursor()).await?;
    let query =
        known.map(|known| format!("?bootId={}&after={}", known.boot_id, known.seq)).unwrap_or_default();
    let (body, _driver) = open(connector, &format!("{PATH}{query}"), access_token).await?;
    let bytes = body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
    let mut lines =
        FramedRead::new(StreamReader::new(bytes), LinesCodec::new_with_max_length(MAX_LINE_BYTES))
            .ready_chunks(BATCH);
    let mut boot_id = String::new();
    loop {
        let batch = tokio::time::timeout(SILENCE, lines.next()).await.map_err(|_| FollowError::Silent)?;
        let Some(batch) = batch else { return Ok(()) };
        let mut entries = Vec::new();
        for line in batch {
            match serde_json::from_str(&line?) {
                Ok(Telemetry::Hello { boot_id: told }) => boot_id = told,
                Ok(Telemetry::Log(entry)) => entries.push(entry),
                Ok(Telemetry::Metrics(metrics)) => recording.measure(&metrics),
                Ok(Telemetry::Work(work)) => activity.told(work),
                // Of a newer agent.
                Err(error) => tracing::debug!(%error, "a line of telemetry is not known"),
            }
        }
        *told_something = true;
        if !entries.is_empty() {
            append(recording, boot_id.clone(), entries).await?;
        }
    }
}

async fn append(recording: &Recording, boot_id: String, entries: Vec<LogEntry>) -> Result<(), FollowError> {
    blocking(recording, move |recording| recording.append(&boot_id, &entries)).await
}

async fn blocking<T: Send + 'static>(
    recording: &Recording,
    act: impl FnOnce(&Recording) -> Result<T, RecordError> + Send + 'static,
) -> Result<T, FollowError> {
    let recording = recording.clone();
    Ok(tokio::task::spawn_blocking(move || act(&recording)).await.map_err(|_| FollowError::Panicked)??)
}

/// The answer's body, and what drives its connection as long as it is kept.
async fn open(
    connector: &Connector,
    path: &str,
    access_token: Option<&str>,
) -> Result<(Incoming, Driver), FollowError> {
    let stream = connector.connect(AGENT_PORT).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = Driver(tokio::spawn(connection).abort_handle());
    let mut request = hyper::Request::get(path).header("host", "agent");
    if let Some(token) = access_token {
        request = request.header(ACCESS_TOKEN_HEADER, token);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    match response.status().as_u16() {
        200 => Ok((response.into_body(), driver)),
        404 => Err(FollowError::Unsupported),
        status => Err(FollowError::Refused(status)),
    }
}

/// Ends the connection when it is dropped.
struct Driver(tokio::task::AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

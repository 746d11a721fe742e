//! The calls the host makes into a guest.
//!
//! `POST /init` tells the agent of a machine that starts to run what a snapshot cannot know: the time, fresh entropy,
//! whose sandbox this is now. The agent answers 204 when all of it is in effect. `POST /freeze` makes the disk whole
//! before it is copied without memory.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use torpor_envd_api::http::InitRequest;
use torpor_network::{AGENT_PORT, Connector};
use torpor_types::SandboxId;
use tracing::Instrument;

use crate::registry::SandboxRecord;

/// How long a guest may take to answer, in all. A machine whose guest never does is given up, and what was not saved of
/// its sandbox with it: so it is far longer than any load of the host explains.
const LIMIT: Duration = Duration::from_secs(300);

/// How long a guest may take to write everything to its disk. One that is not done then runs on, and is not paused.
const FREEZE_LIMIT: Duration = Duration::from_secs(60);

/// How long an attempt to connect is alone, and how long after a refusal another begins.
const BESIDE: Duration = Duration::from_millis(800);
const AFTER_REFUSAL: Duration = Duration::from_millis(30);
/// Attempts at a time.
const MOST_ATTEMPTS: usize = 8;

/// How long telling the time may take, for the guest's clock is that much behind at worst; and how often more it is told
/// to a guest that takes longer.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(100);
const CLOCK_ATTEMPTS: usize = 5;

/// Bytes of entropy a guest gets, as many as its random number generator is keyed with.
const ENTROPY_BYTES: usize = 32;

/// Why a guest could not be told who it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum InitError {
    #[error("the agent did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("no connection to the agent: {0}")]
    Connect(#[from] std::io::Error),
    #[error("the connection to the agent broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the agent answered {status}: {body}")]
    Refused { status: u16, body: String },
    #[error("the request to the agent could not be made: {0}")]
    Request(String),
}

/// A name for one run of a sandbox. An agent that is told another one than before takes it that the streams it has open
/// lead nowhere any more.
pub(super) fn new_lifecycle_id() -> String {
    hex::encode(rand::random::<[u8; 8]>())
}

/// Writes everything to the disk of the guest and keeps it as it is until [`thaw`] or [`init`].
#[tracing::instrument(name = "guest.freeze", skip_all)]
pub(super) async fn freeze(connector: &Connector) -> Result<(), InitError> {
    let freezing = post(connector, "/freeze", || Ok(Vec::new()));
    tokio::time::timeout(FREEZE_LIMIT, freezing).await.map_err(|_| InitError::TimedOut(FREEZE_LIMIT))?
}

/// Lets the guest write to its disk again.
pub(super) async fn thaw(connector: &Connector) -> Result<(), InitError> {
    let thawing = post(connector, "/unfreeze", || Ok(Vec::new()));
    tokio::time::timeout(FREEZE_LIMIT, thawing).await.map_err(|_| InitError::TimedOut(FREEZE_LIMIT))?
}

/// Tells the agent behind `connector` who it is, and waits until it is so; of a machine that boots, until it serves.
#[tracing::instrument(name = "guest.init", skip_all)]
pub(super) async fn init(
    connector: &Connector,
    id: &SandboxId,
    record: &SandboxRecord,
    access_token: Option<String>,
    lifecycle_id: String,
    ca_bundle: Option<String>,
) -> Result<(), InitError> {
    let mut entropy = [0u8; ENTROPY_BYTES];
    rand::Rng::fill(&mut rand::rng(), &mut entropy[..]);
    let request = InitRequest {
        env_vars: Some(record.env_vars.clone()),
        // The empty token: none is needed.
        access_token: Some(access_token.unwrap_or_default()),
        entropy: Some(entropy.to_vec()),
        sandbox_id: Some(id.to_string()),
        template_id: Some(record.template_id.to_string()),
        lifecycle_id: Some(lifecycle_id.clone()),
        ca_bundle,
        ..InitRequest::default()
    };
    // The time is that of the sending: a guest that boots does not listen for seconds.
    let mut sent = Instant::now();
    let stamped = || {
        sent = Instant::now();
        InitRequest { timestamp: Some(jiff::Timestamp::now()), ..request }
    };
    tell(connector, stamped).await?;
    // What took long to be answered may have taken long to arrive, and set the clock back by that.
    for _ in 0..CLOCK_ATTEMPTS {
        if sent.elapsed() <= CLOCK_TOLERANCE {
            break;
        }
        let lifecycle_id = lifecycle_id.clone();
        let stamped = || {
            sent = Instant::now();
            let timestamp = Some(jiff::Timestamp::now());
            InitRequest { lifecycle_id: Some(lifecycle_id), timestamp, ..InitRequest::default() }
        };
        tell(connector, stamped).await?;
    }
    Ok(())
}

/// Tells the agent, in the same start or resume, to trust an authority.
#[tracing::instrument(name = "guest.trust", skip_all)]
pub(super) async fn trust(
    connector: &Connector,
    lifecycle_id: &str,
    ca_bundle: &str,
) -> Result<(), InitError> {
    let request = InitRequest {
        lifecycle_id: Some(lifecycle_id.to_owned()),
        ca_bundle: Some(ca_bundle.to_owned()),
        ..InitRequest::default()
    };
    tell(connector, || request).await
}

/// What [`init`] does, of nobody's sandbox.
pub(super) async fn init_for_rehearsal(connector: &Connector) -> Result<(), InitError> {
    let request = InitRequest {
        access_token: Some(String::new()),
        timestamp: Some(jiff::Timestamp::now()),
        entropy: Some(rand::random::<[u8; ENTROPY_BYTES]>().to_vec()),
        lifecycle_id: Some(new_lifecycle_id()),
        ..InitRequest::default()
    };
    tell(connector, || request).await
}

/// Runs a command that does nothing, as the SDKs run one.
pub(super) async fn run_for_rehearsal(connector: &Connector) -> Result<(), InitError> {
    let body = || Ok(enveloped(br#"{"process":{"cmd":"/bin/bash","args":["-l","-c","true"]}}"#));
    send(connector, "/process.Process/Start", "application/connect+json", body).await
}

/// A message of a Connect stream: flags, length, content.
fn enveloped(message: &[u8]) -> Vec<u8> {
    let mut envelope = vec![0];
    envelope.extend((message.len() as u32).to_be_bytes());
    envelope.extend(message);
    envelope
}

/// Sends what `request` makes once the agent listens.
async fn tell(connector: &Connector, request: impl FnOnce() -> InitRequest) -> Result<(), InitError> {
    let body = || serde_json::to_vec(&request()).map_err(|e| InitError::Request(e.to_string()));
    tokio::time::timeout(LIMIT, post(connector, "/init", body))
        .await
        .map_err(|_| InitError::TimedOut(LIMIT))?
}

/// Connects as soon as the agent listens.
///
/// What a guest that still boots does not answer, the host's kernel would ask again only after a second, and then after two
/// and four: so another attempt begins beside those under way. None is given up before [`LIMIT`], for an overloaded
/// guest may need long to answer any of them.
async fn connect(connector: &Connector) -> std::io::Result<TcpStream> {
    let begun = tokio::time::Instant::now();
    let attempt = |after: Duration| async move {
        tokio::time::sleep(after).await;
        connector.connect_within(AGENT_PORT, LIMIT).await
    };
    let mut attempts = FuturesUnordered::from_iter([attempt(Duration::ZERO)]);
    let mut next_attempt = tokio::time::interval_at(begun + BESIDE, BESIDE);
    loop {
        tokio::select! {
            Some(ended) = attempts.next() => match ended {
                Err(error) if begun.elapsed() > LIMIT => return Err(error),
                // Refused: the guest is there, its agent not yet.
                Err(_) => attempts.push(attempt(AFTER_REFUSAL)),
                connected => return connected,
            },
            _ = next_attempt.tick(), if attempts.len() < MOST_ATTEMPTS => attempts.push(attempt(Duration::ZERO)),
        }
    }
}

async fn post(
    connector: &Connector,
    path: &str,
    body: impl FnOnce() -> Result<Vec<u8>, InitError>,
) -> Result<(), InitError> {
    send(connector, path, "application/json", body).await
}

async fn send(
    connector: &Connector,
    path: &str,
    content_type: &str,
    body: impl FnOnce() -> Result<Vec<u8>, InitError>,
) -> Result<(), InitError> {
    let stream = connect(connector).instrument(tracing::info_span!("guest.connect")).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = hyper::Request::post(path)
        .header("host", "agent")
        .header("content-type", content_type)
        .body(Full::new(Bytes::from(body()?)))
        .map_err(|e| InitError::Request(e.to_string()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    if status.is_success() {
        return Ok(());
    }
    Err(InitError::Refused { status: status.as_u16(), body: String::from_utf8_lossy(&body).into_owned() })
}

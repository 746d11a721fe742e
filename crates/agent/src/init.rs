//! `POST /init`: the host tells the agent whose sandbox this is now, and what time it is.
//!
//! Called at each start and each resume, before the gateway lets a client in. Everything that must not be shared
//! with other continuations of the same snapshot changes here: randomness, clock, names, access token.
//!
//! Only the host may call it: the agent looks at the sender's address, which a process in the sandbox cannot have
//! unless it is root there, and root needs no agent.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    body::Bytes,
    extract::{ConnectInfo, State},
};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use tokio::sync::Mutex;
use torpor_envd_api::http::InitRequest;

use crate::{
    error::HttpError,
    freeze,
    process::Processes,
    server::Shared,
    state::AgentState,
    trust::{self, Trust},
};

/// The host, as the guest sees it: the other end of its one network link.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 1);

/// How far the clock may be off. A smaller step than this is not worth the jump.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_millis(50);

const HOSTS: &str = "/etc/hosts";
/// The address under which Linux distributions list a machine's own name.
const OWN_NAME_ADDRESS: &str = "127.0.1.1";

/// What the handler needs.
#[derive(Clone)]
pub struct Init {
    state: Shared,
    processes: Arc<Processes>,
    one_at_a_time: Arc<Mutex<()>>,
}

/// The handler.
pub async fn post(
    State(init): State<Init>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Bytes,
) -> Result<StatusCode, HttpError> {
    only_host(&init.state, peer)?;
    let request: InitRequest = match body.is_empty() {
        true => InitRequest::default(),
        false => serde_json::from_slice(&body)
            .map_err(|error| HttpError::bad_request(format!("the body is not an init request: {error}")))?,
    };
    let _turn = init.one_at_a_time.lock().await;
    if init.state.options().owns_machine {
        // A pause without memory that did not come about leaves it frozen.
        freeze::thaw()?;
        if let Some(trust) = apply_to_machine(&request)? {
            init.state.set_trust(trust);
        }
    }
    if init.state.apply(&request) {
        init.processes.resumed();
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses everybody but the host.
pub fn only_host(state: &AgentState, peer: SocketAddr) -> Result<(), HttpError> {
    if state.options().init_from_anywhere || peer.ip() == IpAddr::V4(HOST_ADDRESS) {
        return Ok(());
    }
    Err(HttpError::new(StatusCode::FORBIDDEN, "this is reserved for the host of the sandbox"))
}

// === impl Init ===

impl Init {
    /// A handler for that state.
    pub fn new(state: Shared, processes: Arc<Processes>) -> Self {
        Self { state, processes, one_at_a_time: Arc::default() }
    }
}

fn apply_to_machine(request: &InitRequest) -> Result<Option<Trust>, HttpError> {
    let failed = |what: &'static str| {
        move |error: io::Error| {
            HttpError::internal(format!("{what} failed: {error}; the sandbox is not ready"))
        }
    };
    if let Some(seed) = &request.entropy {
        torpor_sys::entropy::reseed(seed).map_err(failed("seeding the random number generator"))?;
    }
    if let Some(now) = request.timestamp {
        set_clock(now).map_err(failed("setting the clock"))?;
    }
    if let Some(name) = request.hostname.as_deref().filter(|name| !name.is_empty()) {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| failed("setting the host name")(e.into()))?;
        if let Err(error) = list_own_name(name) {
            // Only a comfort: without it programs such as sudo warn that they cannot resolve the name.
            tracing::warn!(%error, "cannot list the host name in {HOSTS}");
        }
    }
    let ca_bundle = request.ca_bundle.as_deref().filter(|bundle| !bundle.is_empty());
    ca_bundle.map(trust::trust).transpose().map_err(failed("adding a certificate authority"))
}

fn set_clock(now: Timestamp) -> io::Result<()> {
    let clock = clock_gettime(ClockId::Realtime);
    let clock = Timestamp::new(clock.tv_sec, clock.tv_nsec as i32).unwrap_or(Timestamp::UNIX_EPOCH);
    let off = now.duration_since(clock);
    if off.abs() > CLOCK_TOLERANCE {
        let tv_nsec = i64::from(now.subsec_nanosecond());
        clock_settime(ClockId::Realtime, Timespec { tv_sec: now.as_second(), tv_nsec })?;
        tracing::info!(%off, "clock stepped");
    }
    Ok(())
}

fn list_own_name(name: &str) -> io::Result<()> {
    let old = match fs::read_to_string(HOSTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    match with_own_name(&old, name) {
        Some(new) => fs::write(HOSTS, new),
        None => Ok(()),
    }
}

/// The list of hosts with the machine's own name in it; `None` if it is there already.
fn with_own_name(hosts: &str, name: &str) -> Option<String> {
    let line = format!("{OWN_NAME_ADDRESS} {name}");
    if hosts.lines().any(|other| other == line) {
        return None;
    }
    let mut new = String::new();
    for other in hosts.lines().filter(|other| other.split_whitespace().next() != Some(OWN_NAME_ADDRESS)) {
        new.push_str(other);
        new.push('\n');
    }
    if new.is_empty() {
        new.push_str("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    }
    Some(new + &line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_replaces_the_one_of_the_snapshots_sandbox() {
        let first = with_own_name("127.0.0.1 localhost\n# kept\n", "one").unwrap();
        assert_eq!(first, "127.0.0.1 localhost\n# kept\n127.0.1.1 one\n");
        let second = with_own_name(&first, "two").unwrap();
        assert_eq!(second, "127.0.0.1 localhost\n# kept\n127.0.1.1 two\n");
        assert_eq!(with_own_name(&second, "two"), None);
    }

    #[test]
    fn a_missing_list_of_hosts_gets_localhost_too() {
        assert!(with_own_name("", "one").unwrap().starts_with("127.0.0.1 localhost\n"));
    }
}

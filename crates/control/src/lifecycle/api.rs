//! What the rest of the control plane asks of the sandboxes, and what it is answered.
//!
//! Everything here is plain data: the wire protocol (field names, defaults, status codes) is the business of
//! `http`, machines and snapshots the business of the actors.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use torpor_types::{NetworkConfig, SandboxId, Shape, TemplateId};
use torpor_vault::{Limit, NoRoom};

/// Seconds a sandbox lives when whoever creates or connects to it by the second version of the API does not say.
pub const DEFAULT_TIMEOUT_S: i64 = 300;

/// Seconds a sandbox lives when whoever creates or resumes it by the first version of the API does not say.
pub const LEGACY_TIMEOUT_S: i64 = 15;

/// What happens when a running sandbox reaches its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum OnTimeout {
    /// It is destroyed.
    Kill,
    /// It is paused, as by an explicit pause.
    Pause,
}

/// A request for a new sandbox. Two that serialize the same mean the same.
#[derive(Debug, Clone, Serialize)]
pub struct CreateSandbox {
    /// The id it is going to have: known beforehand, so that it can be recorded before the sandbox exists.
    #[serde(skip)]
    pub id: SandboxId,
    /// The template's id or name.
    pub template: String,
    /// Seconds until the deadline; must be greater than 0 and within the server's maximum.
    pub timeout_s: i64,
    /// What happens at the deadline.
    pub on_timeout: OnTimeout,
    /// Whether a pause at the deadline keeps memory.
    pub keep_memory_on_timeout: bool,
    /// Whether traffic to the paused sandbox resumes it.
    pub auto_resume: bool,
    /// Seconds without work after which happens what happens at the deadline; `None`: never.
    pub idle_timeout_s: Option<u32>,
    /// Days for which it is kept paused, 0 for ever; `None`: as its team or the server's settings say.
    pub retention_days: Option<u32>,
    /// Whether the agent demands an access token.
    pub secure: bool,
    /// Whether the sandbox reaches the internet (where the host has it).
    pub allow_internet: bool,
    /// What traffic it receives and sends.
    pub network: NetworkConfig,
    /// Free text by which clients find their sandboxes again.
    pub metadata: BTreeMap<String, String>,
    /// Environment variables of every process started in the sandbox.
    pub env_vars: BTreeMap<String, String>,
}

/// The state the protocol shows: everything is one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VisibleState {
    /// It answers, or is about to.
    Running,
    /// It is (being) paused and waits to be resumed.
    Paused,
}

impl VisibleState {
    /// `running` or `paused`.
    pub fn as_str(self) -> &'static str {
        match self {
            VisibleState::Running => "running",
            VisibleState::Paused => "paused",
        }
    }
}

/// One sandbox as a client may see it.
#[derive(Debug, Clone)]
pub struct SandboxView {
    /// Its id, the same for its whole life.
    pub id: SandboxId,
    /// The template it was made from.
    pub template_id: TemplateId,
    /// That template's name.
    pub template_name: String,
    /// Running or paused.
    pub state: VisibleState,
    /// When it was created or last resumed.
    pub started_at: Timestamp,
    /// The deadline while running; the moment of the pause while paused.
    pub end_at: Timestamp,
    /// Its size.
    pub shape: Shape,
    /// What its agent implements of the envd protocol.
    pub envd_version: String,
    /// The token its agent demands; `None` for a sandbox created without `secure`.
    pub access_token: Option<String>,
    /// The token requests to its ports have to show; `None` if it has public traffic.
    pub traffic_token: Option<String>,
    /// As given at creation.
    pub metadata: BTreeMap<String, String>,
    /// What happens at the deadline.
    pub on_timeout: OnTimeout,
    /// While paused: whether memory was left out, so that a resume boots.
    pub filesystem_only: bool,
    /// Whether traffic resumes it.
    pub auto_resume: bool,
    /// Whether it reaches the internet.
    pub allow_internet: bool,
    /// What traffic it receives and sends.
    pub network: NetworkConfig,
    /// Seconds without work after which happens what happens at the deadline; `None`: never.
    pub idle_timeout_s: Option<u32>,
    /// Days for which its creator has it kept paused, 0 for ever; `None` where that was not said.
    pub retention_days: Option<u32>,
    /// While paused: when it is removed if nobody resumes it; `None` if never. In answers to `get` and `list` alone.
    pub kept_until: Option<Timestamp>,
    /// While running: why it does so beyond its deadline, if it was to be paused and could not.
    pub held_up: Option<String>,
    /// While paused: whether the pause would survive a power cut by now. While running: true.
    pub durable: bool,
}

/// A snapshot as a client may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotView {
    /// By what sandboxes are made from it and it is deleted: `{team}/{name}:{tag}`, or `{id}:default` without a name.
    pub id: String,
    /// Its names; none, or one.
    pub names: Vec<String>,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// How a [`connect`](super::Sandboxes::connect) found the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connected {
    /// It was running; its deadline was extended if the caller asked for a later one.
    AlreadyRunning,
    /// It was paused and has been resumed.
    Resumed,
}

/// Why an operation on a sandbox was refused or failed. Unless a variant says otherwise nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// No such sandbox, or it belongs to another team.
    #[error("The sandbox {0} was not found")]
    NotFound(SandboxId),
    /// The sandbox is paused and the operation needs it running.
    #[error("The sandbox {0} is paused")]
    Paused(SandboxId),
    /// The sandbox is paused, which is in the way of what was asked.
    #[error("The sandbox {0} is paused: resume it first")]
    NotRunning(SandboxId),
    /// A snapshot cannot have that name.
    #[error("A snapshot cannot be named '{name}': {why}")]
    InvalidName {
        /// What was asked for.
        name: String,
        /// Why not.
        why: String,
    },
    /// Sandboxes made from a snapshot exist.
    #[error(
        "Snapshot '{asked}' is in use by {} sandbox{}: kill {} first",
        .sandboxes.len(),
        if .sandboxes.len() == 1 { "" } else { "es" },
        .sandboxes.iter().take(5).map(SandboxId::as_str).collect::<Vec<_>>().join(", "),
    )]
    SnapshotInUse {
        /// What was asked for.
        asked: String,
        /// Which sandboxes.
        sandboxes: Vec<SandboxId>,
    },
    /// The sandbox is paused already.
    #[error("The sandbox {0} is already paused")]
    AlreadyPaused(SandboxId),
    /// The sandbox is running already.
    #[error("The sandbox {0} is already running")]
    AlreadyRunning(SandboxId),
    /// The sandbox is changing its state at the moment; try again.
    #[error("The sandbox {0} is in transition; try again in a moment")]
    InTransition(SandboxId),
    /// The user's proxy is where no sandbox gets.
    #[error(
        "network.egressProxy: the proxy {0} has an address in a private range, which sandboxes do not reach. Who runs this \
         server can open it with --allow-private-networks"
    )]
    ProxyOutOfReach(std::net::Ipv4Addr),
    /// No template of that id or name.
    #[error("Template '{asked}' was not found. {}", known_templates(.known))]
    TemplateNotFound {
        /// What was asked for.
        asked: String,
        /// Names of the templates there are.
        known: Vec<String>,
    },
    /// A timeout of 0 or less.
    #[error("Timeout must be greater than 0")]
    TimeoutNotPositive,
    /// A timeout over the maximum.
    #[error("Timeout cannot be greater than {max_hours} hours")]
    TimeoutTooLong {
        /// The maximum in hours.
        max_hours: i64,
    },
    /// A sandbox that has run for the maximum cannot be given more.
    #[error("Max instance length exceeded")]
    MaxLengthExceeded,
    /// The team has as many sandboxes running as it may.
    #[error(
        "Your team has {max_running} sandboxes running, which is its limit. Pause or kill one, or have the limit \
         raised (torpor team set-limits)"
    )]
    TooManyRunning {
        /// The limit.
        max_running: u32,
    },
    /// The vault has not enough room.
    #[error(
        "The vault has not enough room: {missing_bytes} bytes are missing. Remove sandboxes that are not needed, \
         or {}", way_to_more_room(.limit)
    )]
    NoRoom {
        /// How many bytes more are needed.
        missing_bytes: u64,
        /// What keeps more from being written.
        limit: Limit,
    },
    /// What was saved does not fit this host, and would not at the next attempt either. Nothing was changed.
    #[error("{what}: {why}")]
    Unfit {
        /// What was being done.
        what: &'static str,
        /// What differs, and the way out.
        why: String,
    },
    /// The sandbox could not be started or stopped. It is as it was before, or, where `lost` says so, gone.
    #[error("{what}: {why}")]
    Failed {
        /// What was being done.
        what: &'static str,
        /// The cause, down to its root.
        why: String,
    },
    /// The server is stopping.
    #[error("The server is shutting down")]
    ShuttingDown,
    /// The database did not do as asked.
    #[error("The database failed: {0}")]
    Registry(#[from] crate::registry::RegistryError),
}

fn way_to_more_room(limit: &Limit) -> &'static str {
    match limit {
        Limit::Budget(_) => "raise its budget (the setting vault_budget)",
        Limit::Reserve(_) | Limit::Unknown => "enlarge the vault (torpor setup --vault-size)",
    }
}

impl From<NoRoom> for LifecycleError {
    fn from(NoRoom { missing_bytes, limit, .. }: NoRoom) -> LifecycleError {
        LifecycleError::NoRoom { missing_bytes, limit }
    }
}

fn known_templates(known: &[String]) -> String {
    if known.is_empty() {
        "There are no templates yet: run `torpor setup`".to_owned()
    } else {
        format!("Templates here: {}", known.join(", "))
    }
}

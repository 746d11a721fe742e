//! What all actors of this node share: registry, vault, machines, limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use torpor_egress::{Authority, Outbound, OutboundOptions};
use torpor_machine::{HostFacts, Machines};
use torpor_network::{Network, Reach};
use torpor_types::{Egress, ProxyAddress, SandboxId, TeamId};
use torpor_vault::{Claim, MachineFacts, Vault};

use super::api::LifecycleError;
use super::bases::Bases;
use super::boot::Kernels;
use super::limits::{Limits, Starts};
use super::rehearsal::TemplateRehearsal;
use crate::registry::{Registry, RegistryError, SandboxRow, TemplateRow};
use crate::retention::Retention;
use crate::telemetry::Telemetry;

/// How much later a file system may say that room is free again, after a file was removed (XFS does it in the background),
/// and how often it is asked meanwhile.
const FREED_LATE: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Name of the node's secret from which access tokens are derived.
const TOKEN_SECRET: &str = "access-token-key";
/// Name of the node's secret that is the authority of its egress proxies: certificate and key, in PEM.
const AUTHORITY_SECRET: &str = "egress-authority";

/// What a node needs to run sandboxes.
pub struct NodeOptions {
    /// The database.
    pub registry: Registry,
    /// The store of snapshots.
    pub vault: Vault,
    /// The machines.
    pub machines: Machines,
    /// The machines' networks.
    pub network: Network,
    /// A PEM file with certificates of authorities that egress proxies trust beside those the host trusts.
    pub egress_roots: Option<PathBuf>,
    /// Logs and metrics.
    pub telemetry: Telemetry,
    /// What a team may have that has no limits of its own.
    pub limits: Limits,
    /// How long what nobody uses is kept, of teams that do not say.
    pub retention: Retention,
    /// Machines kept ready for each template's shape.
    pub warm_machines: usize,
    /// Kernels and initramfs of machines that boot: a directory for each kernel, named by its BLAKE3 hash, with
    /// `vmlinuz` and `initramfs` in it.
    pub kernels_dir: PathBuf,
}

/// The sandboxes of this node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database did not do as asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The machines an earlier server left could not be looked through.
    #[error("the machines of an earlier server could not be taken over: {0}")]
    Machines(String),
    /// The egress proxies cannot be made ready.
    #[error(transparent)]
    Egress(#[from] torpor_egress::StartError),
    /// The authority of the egress proxies is not usable.
    #[error(transparent)]
    Authority(#[from] torpor_egress::AuthorityError),
    /// The snapshots in the vault cannot be listed.
    #[error(transparent)]
    Vault(#[from] torpor_vault::ListError),
    /// As above: it panicked.
    #[error("listing the snapshots in the vault ended early: {0}")]
    Listing(#[source] tokio::task::JoinError),
}

pub(super) struct Node {
    pub(super) registry: Registry,
    pub(super) vault: Vault,
    pub(super) machines: Machines,
    pub(super) outbound: Outbound,
    reach: Reach,
    pub(super) bases: Bases,
    pub(super) kernels: Kernels,
    /// Held while a snapshot is given its name, or loses it.
    pub(super) naming: tokio::sync::Mutex<()>,
    pub(super) telemetry: Telemetry,
    pub(super) starts: Starts,
    limits: Limits,
    pub(super) retention: Retention,
    /// Held while what was kept long enough is removed.
    pub(super) collecting: tokio::sync::Mutex<()>,
    warm_machines: usize,
    token_key: [u8; 32],
    traffic_token_key: [u8; 32],
}

// === impl Node ===

impl Node {
    pub(super) async fn start(options: NodeOptions) -> Result<Node, StartError> {
        let fresh: [u8; 32] = rand::random();
        let secret = options.registry.secret(TOKEN_SECRET, &fresh).await?;
        let authority = options.registry.secret(AUTHORITY_SECRET, Authority::generate()?.as_bytes()).await?;
        let outbound = Outbound::new(OutboundOptions {
            resolver: options.network.resolver(),
            reach: options.network.reach().clone(),
            authority: Authority::from_pem(&String::from_utf8_lossy(&authority))?,
            extra_roots: options.egress_roots,
        })?;
        Ok(Node {
            outbound,
            reach: options.network.reach().clone(),
            token_key: *blake3::hash(&secret).as_bytes(),
            traffic_token_key: blake3::derive_key("torpor 2026 traffic access tokens", &secret),
            registry: options.registry,
            bases: Bases::new(options.vault.clone()),
            kernels: Kernels::new(&options.kernels_dir),
            naming: tokio::sync::Mutex::default(),
            vault: options.vault,
            machines: options.machines,
            telemetry: options.telemetry,
            starts: Starts::default(),
            limits: options.limits,
            retention: options.retention,
            collecting: tokio::sync::Mutex::default(),
            warm_machines: options.warm_machines,
        })
    }

    /// The token clients of the sandbox show to its agent: the same for the sandbox's whole life, another for every
    /// sandbox, and derived rather than stored.
    pub(super) fn access_token(&self, row: &SandboxRow) -> Option<String> {
        row.record.secure.then(|| derived(&self.token_key, &row.id))
    }

    /// The token requests to its ports have to show; `None` if everybody may send some. Made like the access token,
    /// with another key: one tells nothing of the other.
    pub(super) fn traffic_token(&self, row: &SandboxRow) -> Option<String> {
        let is_private = !row.record.network.ingress.allow_public_traffic;
        is_private.then(|| derived(&self.traffic_token_key, &row.id))
    }

    /// Refuses what could never work.
    pub(super) fn check_egress(&self, egress: &Egress) -> Result<(), LifecycleError> {
        match egress.proxy.as_ref().map(|proxy| &proxy.address) {
            Some(ProxyAddress::Address(address, _)) if !self.reach.contains(*address) => {
                Err(LifecycleError::ProxyOutOfReach(*address))
            }
            // A name is resolved for each connection, and what it stands for is checked then.
            Some(ProxyAddress::Address(..) | ProxyAddress::Name(..)) | None => Ok(()),
        }
    }

    /// What `team` may have.
    pub(super) async fn limits(&self, team: &TeamId) -> Result<Limits, RegistryError> {
        let own = self.registry.team(team).await?.map(|team| team.limits).unwrap_or_default();
        Ok(Limits {
            max_running: own.max_running.or(self.limits.max_running),
            max_timeout_s: own
                .max_timeout_hours
                .map_or(self.limits.max_timeout_s, |hours| i64::from(hours) * 3600),
        })
    }

    /// Claims `bytes` of the vault; refuses when they are not there, and are not there a moment later.
    pub(super) async fn claim_room(&self, bytes: u64) -> Result<Claim, LifecycleError> {
        let begun = Instant::now();
        loop {
            match self.vault.claim_room(bytes) {
                Err(_) if begun.elapsed() < FREED_LATE => tokio::time::sleep(LOOK_AGAIN).await,
                claimed => return Ok(claimed?),
            }
        }
    }

    /// Has machines prepared for every template there is.
    pub(super) async fn warm_up(&self) {
        match self.registry.templates().await {
            Ok(templates) => templates.iter().for_each(|template| self.keep_warm(template)),
            Err(error) => {
                tracing::warn!(%error, "no machines are kept ready: the templates cannot be listed")
            }
        }
    }

    /// Has machines prepared that are like those of a template.
    pub(super) fn keep_warm(&self, template: &TemplateRow) {
        let rehearsal = Arc::new(TemplateRehearsal::new(self, template));
        self.machines.keep_warm(template.shape, self.warm_machines, Some(rehearsal));
    }
}

fn derived(key: &[u8; 32], id: &SandboxId) -> String {
    let hash = blake3::keyed_hash(key, id.as_str().as_bytes());
    hex::encode(&hash.as_bytes()[..20])
}

/// Why memory of a machine like `snapshot` cannot be resumed on a host like `host`; `None` if it can.
pub(super) fn mismatch(snapshot: &MachineFacts, host: &HostFacts) -> Option<String> {
    let must_be_equal = [
        ("accelerator", snapshot.accelerator.as_str(), host.accelerator.as_str()),
        ("machine type", &snapshot.machine_type, &host.machine_type),
        ("CPU model", &snapshot.cpu_model, &host.cpu_model),
        ("QEMU version", &snapshot.qemu_version, &host.qemu_version),
    ];
    let differing = must_be_equal.into_iter().find(|(_, there, here)| there != here);
    let (what, there, here) = match differing {
        Some((what, there, here)) => (what, there.to_owned(), here.to_owned()),
        None if !host.tsc_fits(snapshot.tsc_khz) => {
            ("time stamp counter", format!("{} kHz", snapshot.tsc_khz), format!("{} kHz", host.tsc_khz))
        }
        None => return None,
    };
    Some(format!(
        "its {what} is '{there}', this host's is '{here}', and memory cannot be carried from one to the other. Nothing \
         is lost. A paused sandbox goes on where it was on a host like its first, or boots here from its disk, without \
         what ran in it (`torpor sandbox resume --boot`, or \"memory\": false in the request); a template is built anew by \
         `torpor setup`"
    ))
}

#[cfg(test)]
mod tests {
    use torpor_types::{Accelerator, Shape};

    use super::*;

    fn host() -> HostFacts {
        HostFacts {
            accelerator: Accelerator::Tcg,
            machine_type: "microvm".to_owned(),
            cpu_model: "max".to_owned(),
            qemu_version: "10.0.2".to_owned(),
            tsc_khz: 2_596_140,
        }
    }

    fn snapshot() -> MachineFacts {
        MachineFacts {
            shape: Shape { vcpus: 1, memory_mib: 512, disk_mib: 8192 },
            accelerator: Accelerator::Tcg,
            machine_type: "microvm".to_owned(),
            cpu_model: "max".to_owned(),
            qemu_version: "10.0.2".to_owned(),
            kernel_blake3: String::new(),
            agent_version: "0.1.0".to_owned(),
            tsc_khz: 2_596_103,
        }
    }

    #[test]
    fn memory_made_on_a_host_like_this_one_is_accepted() {
        assert_eq!(mismatch(&snapshot(), &host()), None);
    }

    #[test]
    fn memory_made_under_another_qemu_or_processor_is_refused_with_what_differs() {
        let other_qemu = MachineFacts { qemu_version: "9.2.0".to_owned(), ..snapshot() };
        let why = mismatch(&other_qemu, &host()).unwrap();
        assert!(why.contains("QEMU version is '9.2.0', this host's is '10.0.2'"), "{why}");
        insta::assert_snapshot!(why);
        let other_clock = MachineFacts { tsc_khz: 3_000_000, ..snapshot() };
        let why = mismatch(&other_clock, &host()).unwrap();
        assert!(why.contains("'3000000 kHz'"), "{why}");
    }
}

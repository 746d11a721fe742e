//! Settings: one list, from which the flags, the environment variables, the keys of `torpor.toml` and
//! the page `docs/configuration.md` all come.
//!
//! A flag beats the environment, the environment beats the file, the file beats the default. The key in the file is
//! the flag's name with `_` for `-`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;
use torpor_control::lifecycle::Limits;
use torpor_control::retention::{MAX_DAYS, Retention};
use torpor_machine::MemoryMode;

use crate::layout::{DEFAULT_DATA_DIR, DataDir};

/// Address on which API and gateway listen by default.
pub(crate) const DEFAULT_LISTEN: &str = "127.0.0.1:3000";
/// Longest life between two resumes by default, in hours.
const DEFAULT_MAX_TIMEOUT_HOURS: u32 = 24;
/// Machines kept ready for each template by default.
const DEFAULT_WARM_MACHINES: usize = 2;

/// Where the node's data is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DataDirOption {
    /// Directory for everything that must survive: database, snapshots, templates
    #[arg(long, env = "TORPOR_DATA_DIR", default_value = DEFAULT_DATA_DIR, global = true)]
    pub(crate) data_dir: PathBuf,
}

/// What a server can be told.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Server settings")]
pub(crate) struct Settings {
    /// Address and port of API and gateway [default: 127.0.0.1:3000]
    #[arg(long, env = "TORPOR_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,

    /// Address and port of API and gateway over HTTPS, beside the plain ones [default: none]
    #[arg(long, env = "TORPOR_HTTPS_LISTEN")]
    pub(crate) https_listen: Option<SocketAddr>,

    /// PEM file with the certificate for HTTPS, its chain after it [default: the one of `torpor tls`]
    #[arg(long, env = "TORPOR_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// PEM file with the certificate's private key; both files are read again when they change
    #[arg(long, env = "TORPOR_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Get and renew the certificate for HTTPS from an authority, proving the domain so; only dns-01 proves the wildcard
    /// that sandboxes under names of their own need
    #[arg(long, env = "TORPOR_ACME")]
    pub(crate) acme: Option<AcmeChallenge>,

    /// URL of the authority's ACME directory [default: Let's Encrypt]
    #[arg(long, env = "TORPOR_ACME_DIRECTORY")]
    pub(crate) acme_directory: Option<String>,

    /// Address to which the authority may send notices
    #[arg(long, env = "TORPOR_ACME_CONTACT")]
    pub(crate) acme_contact: Option<String>,

    /// PEM file of the authority to trust behind the directory's URL [default: the host's list]
    #[arg(long, env = "TORPOR_ACME_ROOT")]
    pub(crate) acme_root: Option<PathBuf>,

    /// Address and port on which http-01 is answered beside the plain port; authorities ask on port 80
    #[arg(long, env = "TORPOR_ACME_HTTP_LISTEN")]
    pub(crate) acme_http_listen: Option<SocketAddr>,

    /// Program that sets TXT records for dns-01, called as: PROGRAM present|cleanup NAME VALUE
    #[arg(long, env = "TORPOR_ACME_DNS_HOOK")]
    pub(crate) acme_dns_hook: Option<PathBuf>,

    /// Domain under which sandboxes are reached as {port}-{id}.{domain}; may hold a port
    #[arg(long, env = "TORPOR_DOMAIN")]
    pub(crate) domain: Option<String>,

    /// Longest time a sandbox may run without a resume, in hours, unless its team has a limit of its own [default: 24]
    #[arg(long, env = "TORPOR_MAX_TIMEOUT_HOURS")]
    pub(crate) max_timeout_hours: Option<u32>,

    /// Sandboxes that a team may have running, unless it has a limit of its own [default: any number]
    #[arg(long, env = "TORPOR_MAX_RUNNING")]
    pub(crate) max_running: Option<u32>,

    /// Days for which a sandbox is kept paused before it is removed, unless its team or its creator says otherwise; 0 for
    /// ever [default: 30]
    #[arg(long, env = "TORPOR_RETENTION_DAYS", value_name = "DAYS", value_parser = days())]
    pub(crate) retention_days: Option<u32>,

    /// Days for which a snapshot is kept before it is removed, unless its team says otherwise; 0 for ever [default: 0]
    #[arg(long, env = "TORPOR_SNAPSHOT_RETENTION_DAYS", value_name = "DAYS", value_parser = days())]
    pub(crate) snapshot_retention_days: Option<u32>,

    /// Space that the vault may take up, for instance 200G; what would exceed it is refused [default: all there is]
    #[arg(long, env = "TORPOR_VAULT_BUDGET", value_name = "SIZE")]
    pub(crate) vault_budget: Option<Size>,

    /// Space of the vault's file system that is kept free [default: 1G]
    #[arg(long, env = "TORPOR_VAULT_RESERVE", value_name = "SIZE")]
    pub(crate) vault_reserve: Option<Size>,

    /// How machines have their memory: private, over the snapshot's file, by a library preloaded into QEMU, or shared, as a
    /// file of their own in the vault, where nothing can be preloaded [default: private]
    #[arg(long, env = "TORPOR_VAULT_MEMORY", value_name = "private|shared")]
    pub(crate) vault_memory: Option<MemoryMode>,

    /// The keys above in a table of their own: `vault.memory` for `vault_memory`.
    #[arg(skip)]
    pub(crate) vault: Option<VaultTable>,

    /// Machines kept ready for each template; more make bursts of creates quicker and cost 16 to 40 MB each
    /// [default: 2]
    #[arg(long, env = "TORPOR_WARM_MACHINES")]
    pub(crate) warm_machines: Option<usize>,

    /// What executes guests: auto, kvm or tcg [default: auto, as found at set-up]
    #[arg(long, env = "TORPOR_ACCELERATOR")]
    pub(crate) accelerator: Option<String>,

    /// QEMU program [default: the one set-up found]
    #[arg(long, env = "TORPOR_QEMU")]
    pub(crate) qemu: Option<PathBuf>,

    /// IPv4 network from which the host's ends of sandbox links get addresses [default: 10.201.0.0/16]
    #[arg(long, env = "TORPOR_NETWORK_POOL")]
    pub(crate) network_pool: Option<String>,

    /// DNS resolver that sandboxes use [default: the host's]
    #[arg(long, env = "TORPOR_RESOLVER")]
    pub(crate) resolver: Option<IpAddr>,

    /// Private IPv4 networks that sandboxes may reach all the same, addresses of this host included; with commas
    /// between them
    #[arg(long, env = "TORPOR_ALLOW_PRIVATE_NETWORKS", value_name = "CIDR,...")]
    pub(crate) allow_private_networks: Option<String>,

    /// PEM file with certificates of authorities that are trusted, beside the host's, when headers are put into what
    /// sandboxes send by HTTPS
    #[arg(long, env = "TORPOR_EGRESS_ROOTS", value_name = "FILE")]
    pub(crate) egress_roots: Option<PathBuf>,

    /// What is logged, in tracing's filter syntax [default: info]
    #[arg(long, env = "TORPOR_LOG")]
    pub(crate) log: Option<String>,
}

/// What `torpor.toml` may have in a table `vault`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultTable {
    budget: Option<Size>,
    reserve: Option<Size>,
    memory: Option<MemoryMode>,
}

/// A number of bytes, written as people do: `100G`, or in the file also as a bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeText")]
pub(crate) struct Size {
    /// How many.
    pub(crate) bytes: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

/// Reads a number of days.
pub(crate) fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=i64::from(MAX_DAYS))
}

/// How an authority is shown that the domain is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
pub(crate) enum AcmeChallenge {
    /// A text under a path of the domain, on port 80
    #[value(name = "http-01")]
    #[serde(rename = "http-01")]
    Http01,
    /// A TXT record
    #[value(name = "dns-01")]
    #[serde(rename = "dns-01")]
    Dns01,
}

/// The settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read { path: String, cause: std::io::Error },
    /// The file is no valid TOML, or has a key that is not in the list.
    #[error("{path}: {cause}\nThe keys are listed by `torpor serve --help` (with _ for -)")]
    Parse { path: String, cause: Box<toml::de::Error> },
}

// === impl Size ===

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self { bytes: crate::setup::parse_size(text)? })
    }
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(size: SizeText) -> Result<Self, String> {
        match size {
            SizeText::Bytes(bytes) => Ok(Self { bytes }),
            SizeText::Text(text) => text.parse(),
        }
    }
}

// === impl Settings ===

impl Settings {
    /// These settings (from flags and environment), with `torpor.toml` for what they leave open.
    pub(crate) fn with_file(self, data_dir: &DataDir) -> Result<Settings, SettingsError> {
        let path = data_dir.config();
        let shown = path.display().to_string();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(self),
            Err(cause) => return Err(SettingsError::Read { path: shown, cause }),
        };
        let file: Settings = toml::from_str(&text)
            .map_err(|cause| SettingsError::Parse { path: shown, cause: Box::new(cause) })?;
        Ok(self.or(file.with_tables()))
    }

    /// What is in a table, for what is not written out.
    fn with_tables(mut self) -> Settings {
        let table = self.vault.take().unwrap_or_default();
        self.vault_budget = self.vault_budget.or(table.budget);
        self.vault_reserve = self.vault_reserve.or(table.reserve);
        self.vault_memory = self.vault_memory.or(table.memory);
        self
    }

    fn or(self, other: Settings) -> Settings {
        Settings {
            listen: self.listen.or(other.listen),
            https_listen: self.https_listen.or(other.https_listen),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            acme: self.acme.or(other.acme),
            acme_directory: self.acme_directory.or(other.acme_directory),
            acme_contact: self.acme_contact.or(other.acme_contact),
            acme_root: self.acme_root.or(other.acme_root),
            acme_http_listen: self.acme_http_listen.or(other.acme_http_listen),
            acme_dns_hook: self.acme_dns_hook.or(other.acme_dns_hook),
            domain: self.domain.or(other.domain),
            max_timeout_hours: self.max_timeout_hours.or(other.max_timeout_hours),
            max_running: self.max_running.or(other.max_running),
            retention_days: self.retention_days.or(other.retention_days),
            snapshot_retention_days: self.snapshot_retention_days.or(other.snapshot_retention_days),
            vault_budget: self.vault_budget.or(other.vault_budget),
            vault_reserve: self.vault_reserve.or(other.vault_reserve),
            vault_memory: self.vault_memory.or(other.vault_memory),
            vault: None,
            warm_machines: self.warm_machines.or(other.warm_machines),
            accelerator: self.accelerator.or(other.accelerator),
            qemu: self.qemu.or(other.qemu),
            network_pool: self.network_pool.or(other.network_pool),
            resolver: self.resolver.or(other.resolver),
            allow_private_networks: self.allow_private_networks.or(other.allow_private_networks),
            egress_roots: self.egress_roots.or(other.egress_roots),
            log: self.log.or(other.log),
        }
    }

    /// Where API and gateway listen.
    pub(crate) fn listen(&self) -> SocketAddr {
        const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3000);
        self.listen.unwrap_or(LOOPBACK)
    }

    /// What a team may have that has no limits of its own.
    pub(crate) fn limits(&self) -> Limits {
        let max_timeout_hours = self.max_timeout_hours.unwrap_or(DEFAULT_MAX_TIMEOUT_HOURS);
        Limits { max_running: self.max_running, max_timeout_s: i64::from(max_timeout_hours) * 3600 }
    }

    /// How long what nobody uses is kept.
    pub(crate) fn retention(&self) -> Retention {
        let Retention { paused_days, snapshot_days } = Retention::default();
        Retention {
            paused_days: self.retention_days.unwrap_or(paused_days),
            snapshot_days: self.snapshot_retention_days.unwrap_or(snapshot_days),
        }
    }

    /// How much of the vault may be used.
    pub(crate) fn vault_limits(&self) -> torpor_vault::Limits {
        let default = torpor_vault::Limits::default();
        torpor_vault::Limits {
            reserve_bytes: self.vault_reserve.map_or(default.reserve_bytes, |size| size.bytes),
            budget_bytes: self.vault_budget.map(|size| size.bytes),
        }
    }

    /// How machines have their memory.
    pub(crate) fn vault_memory(&self) -> MemoryMode {
        self.vault_memory.unwrap_or_default()
    }

    /// Machines kept ready for each template.
    pub(crate) fn warm_machines(&self) -> usize {
        self.warm_machines.unwrap_or(DEFAULT_WARM_MACHINES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_dir(toml: &str, flags: Settings) -> Result<Settings, SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::create(dir.path()).unwrap();
        std::fs::write(data_dir.config(), toml).unwrap();
        flags.with_file(&data_dir)
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let flags = Settings { warm_machines: Some(7), ..Settings::default() };
        let settings = in_dir("warm_machines = 1\nlisten = \"0.0.0.0:80\"", flags).unwrap();
        assert_eq!(settings.warm_machines(), 7);
        assert_eq!(settings.listen().to_string(), "0.0.0.0:80");
        assert_eq!(settings.limits(), Limits { max_running: None, max_timeout_s: 86_400 });
    }

    #[test]
    fn sizes_may_be_written_as_people_do_or_in_bytes() {
        let settings = in_dir("vault_budget = \"20G\"\nvault_reserve = 4096", Settings::default()).unwrap();
        let limits = settings.vault_limits();
        assert_eq!((limits.budget_bytes, limits.reserve_bytes), (Some(20 << 30), 4096));
        assert!(in_dir("vault_budget = \"much\"", Settings::default()).is_err());
    }

    #[test]
    fn the_vaults_keys_may_be_in_a_table_and_memory_is_one_of_two() {
        let settings =
            in_dir("vault.memory = \"shared\"\nvault.budget = \"1G\"", Settings::default()).unwrap();
        assert_eq!(
            (settings.vault_memory(), settings.vault_limits().budget_bytes),
            (MemoryMode::Shared, Some(1 << 30))
        );
        let settings = in_dir("vault_memory = \"shared\"", Settings::default()).unwrap();
        assert_eq!(settings.vault_memory(), MemoryMode::Shared);
        assert_eq!(Settings::default().vault_memory(), MemoryMode::Private);
        let error = in_dir("vault.memory = \"both\"", Settings::default()).unwrap_err().to_string();
        assert!(error.contains("'both'") && error.contains("'private'"), "{error}");
        assert!(in_dir("vault.memmory = \"shared\"", Settings::default()).is_err());
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let error = in_dir("warm_machine = 1", Settings::default()).unwrap_err().to_string();
        assert!(error.contains("warm_machine"), "{error}");
    }

    #[test]
    fn the_documented_default_address_is_the_one_used() {
        assert_eq!(Settings::default().listen().to_string(), DEFAULT_LISTEN);
    }
}

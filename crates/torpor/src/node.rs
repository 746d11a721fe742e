//! Everything a node stands on, opened in order: data directory, lock, vault, network, machines.
//!
//! The server, the set-up (which boots templates) and `teardown` all begin here, and the lock keeps them apart.

use std::path::PathBuf;

use torpor_machine::{MachineOptions, Machines};
use torpor_network::{Instance, Network, NetworkOptions, Reach};
use torpor_types::{Accelerator, Block};
use torpor_vault::Vault;
use torpor_vault::place::{self, PlaceOptions};

use crate::embedded::{self, Extracted};
use crate::layout::DataDir;
use crate::lock::{DataDirLock, LockError};
use crate::settings::Settings;

/// A node, ready to run machines.
pub(crate) struct Node {
    /// Held as long as the node is used.
    pub(crate) lock: DataDirLock,
    /// The store of snapshots.
    pub(crate) vault: Vault,
    /// Networks of machines.
    pub(crate) network: Network,
    /// The machines.
    pub(crate) machines: Machines,
    /// Agent and ram-map, as files.
    pub(crate) embedded: Extracted,
}

/// A node cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// Not root.
    #[error(
        "torpor has to run as root: it starts virtual machines in network namespaces. Try `sudo torpor …`"
    )]
    NotRoot,
    /// Somebody else has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No place for the vault.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    /// No vault.
    #[error(transparent)]
    Vault(#[from] torpor_vault::OpenError),
    /// A setting is wrong.
    #[error("the setting {name} is wrong: {why}")]
    Setting { name: &'static str, why: String },
    /// No network.
    #[error(transparent)]
    Network(#[from] torpor_network::StartError),
    /// No machines.
    #[error(transparent)]
    Machines(#[from] torpor_machine::StartError),
    /// The embedded files cannot be taken out.
    #[error("cannot write to {path}: {cause}")]
    Extract { path: PathBuf, cause: std::io::Error },
}

// === impl Node ===

impl Node {
    /// Opens the node in `data_dir` for machines run by `accelerator`. Mounts the vault's image if it has one that is
    /// not mounted (after the host's start), and makes the vault if there is none yet.
    pub(crate) async fn open(
        data_dir: &DataDir,
        settings: &Settings,
        accelerator: Accelerator,
        place_options: PlaceOptions,
    ) -> Result<Node, NodeError> {
        if !rustix::process::geteuid().is_root() {
            return Err(NodeError::NotRoot);
        }
        let lock = DataDirLock::take(data_dir)?;
        let place = place::prepare(data_dir.root(), &place_options)?;
        let vault = Vault::open_within(&place.vault_dir, settings.vault_limits())?;
        let extract = |cause| NodeError::Extract { path: data_dir.lib(), cause };
        let embedded = embedded::extract(&data_dir.lib()).map_err(extract)?;
        embedded::remove_others(&data_dir.lib()).map_err(extract)?;
        let kernels = data_dir.kernels();
        let extract = |cause| NodeError::Extract { path: kernels.clone(), cause };
        torpor_template::kernels::refresh(&kernels, embedded::AGENT).map_err(extract)?;
        let network = Network::start(network_options(data_dir, settings)?).await?;
        let machines = Machines::start(MachineOptions {
            qemu: settings.qemu.clone(),
            ram_map: embedded.ram_map.clone(),
            accelerator,
            run_dir: data_dir.run_dir(),
            disks_dir: vault.machines_dir(),
            memory: settings.vault_memory(),
            network: network.clone(),
            instance: data_dir.instance(),
            uid_base: MachineOptions::DEFAULT_UID_BASE,
            warm_limit: MachineOptions::DEFAULT_WARM_LIMIT,
        })
        .await?;
        Ok(Node { lock, vault, network, machines, embedded })
    }
}

fn network_options(data_dir: &DataDir, settings: &Settings) -> Result<NetworkOptions, NodeError> {
    let wrong = |name, why: &dyn std::fmt::Display| NodeError::Setting { name, why: why.to_string() };
    let instance: Instance = data_dir.instance().parse().map_err(|e| wrong("instance", &e))?;
    let mut options = NetworkOptions::new(instance);
    if let Some(pool) = &settings.network_pool {
        options.pool = pool.parse().map_err(|e| wrong("network_pool", &e))?;
    }
    if let Some(resolver) = settings.resolver {
        options.resolver = Some(resolver);
    }
    if let Some(networks) = &settings.allow_private_networks {
        options.reach =
            Reach::opening(&blocks(networks).map_err(|why| wrong("allow_private_networks", &why))?);
    }
    Ok(options)
}

/// The IPv4 networks in a list with commas.
fn blocks(list: &str) -> Result<Vec<ipnet::Ipv4Net>, String> {
    let block = |entry: &str| {
        let block: Block = entry.parse().map_err(|error: torpor_types::ParseBlockError| error.to_string())?;
        block.v4().ok_or_else(|| format!("'{entry}' is not one of IPv4, which is all that sandboxes have"))
    };
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_opened_by_a_list_with_commas() {
        let opened = blocks("10.1.0.0/16, 192.168.7.7,").unwrap();
        assert_eq!(
            opened.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.1.0.0/16", "192.168.7.7/32"]
        );
        for wrong in ["10.1.0.0/33", "10.1.0.0/16;10.2.0.0/16", "fd00::/8", "lan"] {
            assert!(blocks(wrong).is_err(), "{wrong}");
        }
    }
}

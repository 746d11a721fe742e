//! `torpor teardown`: nothing of a node runs or is mounted any more. What is on disk stays.

use torpor_types::Accelerator;
use torpor_vault::place::{self, PlaceOptions};

use crate::layout::DataDir;
use crate::node::{Node, NodeError};
use crate::settings::Settings;

/// A node cannot be taken down.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TeardownError {
    /// It cannot be opened.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Its machines cannot be found.
    #[error(transparent)]
    Machines(#[from] torpor_machine::AdoptError),
    /// Its network devices or rules cannot be removed.
    #[error(transparent)]
    Network(#[from] torpor_network::RemoveError),
    /// The vault cannot be unmounted.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
}

/// Ends every machine of the node in `data_dir`, removes its network rules and unmounts its vault. Says how many
/// machines were ended.
pub(crate) async fn teardown(data_dir: &DataDir, settings: &Settings) -> Result<usize, TeardownError> {
    // The accelerator does not matter: nothing is started.
    let node = Node::open(data_dir, settings, Accelerator::Tcg, PlaceOptions::default()).await?;
    let machines = node.machines.adopt().await?;
    let ended = machines.len();
    for machine in machines {
        machine.destroy().await;
    }
    node.machines.remove_all().await;
    node.network.remove_all().await?;
    let Node { lock, vault, network, machines, .. } = node;
    drop((vault, network, machines));
    place::unmount(data_dir.root())?;
    drop(lock);
    Ok(ended)
}

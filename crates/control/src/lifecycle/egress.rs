//! Putting in force what a sandbox reaches.

use torpor_egress::ApplyError;
use torpor_machine::Machine;
use torpor_network::EgressPolicy;

use super::node::Node;
use crate::registry::SandboxRecord;

/// Puts in force what the record says, in a new machine's namespace, which reaches everything a sandbox may.
pub(super) async fn apply_to_new(
    node: &Node,
    machine: &Machine,
    record: &SandboxRecord,
) -> Result<(), ApplyError> {
    if EgressPolicy::from(&record.egress()) == EgressPolicy::default() {
        return Ok(());
    }
    apply(node, machine, record).await
}

/// Puts in force what the record says, whatever is in force now.
pub(super) async fn apply(node: &Node, machine: &Machine, record: &SandboxRecord) -> Result<(), ApplyError> {
    let newly_served = node.outbound.apply(machine.id(), machine.network(), &record.egress()).await?;
    if newly_served {
        // The proxy's sockets would keep the namespace alive after its machine.
        let (outbound, machine) = (node.outbound.clone(), machine.clone());
        tokio::spawn(async move {
            machine.exited().await;
            outbound.forget(machine.id());
        });
    }
    Ok(())
}

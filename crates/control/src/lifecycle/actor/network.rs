//! Changing what a running sandbox reaches.

use torpor_types::Egress;

use super::{Actor, Carrier, chain};
use crate::lifecycle::api::LifecycleError;
use crate::lifecycle::{egress, guest};
use crate::registry::StoredState;

// === impl Actor ===

impl Actor {
    /// Records what the sandbox is to reach, and then puts it in force. On an error neither has changed.
    ///
    /// A crash in between leaves the record, which the next server puts in force when it takes the machine over.
    #[tracing::instrument(name = "sandbox.network", skip_all)]
    pub(super) async fn set_egress(
        &mut self,
        wanted: Egress,
        allow_internet: bool,
    ) -> Result<(), LifecycleError> {
        let Carrier::Running { machine, .. } = &self.carrier else {
            return Err(LifecycleError::Paused(self.row.id.clone()));
        };
        let machine = machine.clone();
        self.node.check_egress(&wanted)?;
        let before = self.row.clone();
        self.row.record.network.egress = wanted;
        self.row.record.allow_internet = allow_internet;
        if let Err(error) = self.record(StoredState::Running).await {
            self.row = before;
            return Err(error.into());
        }
        // The guest learns to trust before it meets a certificate it would not.
        let trusted = match self.node.outbound.ca_bundle(&self.row.record.egress()) {
            Some(bundle) => {
                guest::trust(&machine.connector(), &self.lifecycle_id, bundle).await.map_err(|e| chain(&e))
            }
            None => Ok(()),
        };
        let applied = match trusted {
            Ok(()) => egress::apply(&self.node, &machine, &self.row.record).await.map_err(|e| chain(&e)),
            Err(why) => Err(why),
        };
        if let Err(why) = applied {
            self.row = before;
            self.record(StoredState::Running).await?;
            return Err(LifecycleError::Failed { what: "The network could not be changed", why });
        }
        self.publish();
        Ok(())
    }
}

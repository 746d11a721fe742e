//! Copying a sandbox that goes on running: what snapshots and forks are made of.
//!
//! What the guest dirtied is copied while it runs, and again what it wrote meanwhile, until that is little. Then the machine
//! stands still while its device state is captured, that little is copied and its disk is cloned, and goes on at once: how
//! long does not depend on how much memory it has. Making the copy durable follows in the background. A server that ends in between leaves a
//! machine that is stopped and a row that says it runs, which the next server lets go on.

use torpor_machine::Machine;
use torpor_vault::interruption;
use tracing::Instrument;

use super::{Actor, Carrier, Next, Reply, answer, chain};
use crate::lifecycle::api::LifecycleError;
use crate::lifecycle::bases::Base;
use crate::lifecycle::guest;
use crate::lifecycle::save::{Copied, Copying, Keep, SaveError};

const WHAT: &str = "The snapshot could not be taken; the sandbox runs on";

// === impl Actor ===

impl Actor {
    /// Copies the sandbox and answers `reply` with the durable copy, which is kept until the answer is dropped.
    #[tracing::instrument(name = "sandbox.snapshot", skip_all)]
    pub(super) async fn snapshot(
        &mut self,
        keep: Keep,
        subject: serde_json::Value,
        reply: Reply<Base>,
    ) -> Next {
        let Carrier::Running { machine, .. } = &self.carrier else {
            answer(reply, Err(LifecycleError::Paused(self.row.id.clone())));
            return Next::Continue;
        };
        let machine = machine.clone();
        self.copying = true;
        self.publish();
        let copied = self.copy(&machine, keep).await;
        self.copying = false;
        self.publish();
        let copied = match copied {
            Ok(copied) => copied,
            Err(error) => {
                answer(reply, Err(error));
                return Next::Continue;
            }
        };
        let (vault_bases, span) = (self.node.bases.clone(), tracing::info_span!("sandbox.publish"));
        let publishing = async move {
            let published =
                tokio::task::spawn_blocking(move || span.in_scope(|| copied.publish(subject))).await;
            let outcome = match published {
                Ok(Ok(id)) => Ok(vault_bases.hold(&id)),
                Ok(Err(error)) => Err(LifecycleError::from(error)),
                Err(panic) => Err(LifecycleError::Failed { what: WHAT, why: panic.to_string() }),
            };
            answer(reply, outcome);
        };
        tokio::spawn(publishing.in_current_span());
        Next::Continue
    }

    /// Copies what it can of the running machine, then stops it, copies the rest, and lets it go on, whatever came of the
    /// copy.
    async fn copy(&mut self, machine: &Machine, keep: Keep) -> Result<Copied, LifecycleError> {
        let room = self.node.claim_room(machine.room_to_save()).await?;
        if keep == Keep::Disk {
            self.freeze(machine).await?;
        }
        let (node, running) = (self.node.clone(), machine.clone());
        let begun = blocking(tracing::info_span!("sandbox.copy_ahead"), move || {
            let mut copying = Copying::begin(&node, &running, keep, room)?;
            copying.copy_ahead(&running)?;
            Ok(copying)
        });
        let copied = match begun.await {
            Ok(copying) => self.stop_and_finish(machine, copying).await,
            Err(error) => Err(error),
        };
        if keep == Keep::Disk {
            self.thaw(machine).await;
        }
        machine.untrack().await;
        copied
    }

    /// The part for which the machine stands still.
    #[tracing::instrument(name = "sandbox.stopped", skip_all)]
    async fn stop_and_finish(
        &mut self,
        machine: &Machine,
        copying: Copying,
    ) -> Result<Copied, LifecycleError> {
        let copied = match machine.stop_and_capture().await {
            Ok(state) => {
                interruption::step("copy.1");
                let stopped = machine.clone();
                blocking(tracing::info_span!("sandbox.copy"), move || {
                    copying.finish(&stopped, &state, &|| false)
                })
                .await
            }
            Err(error) => Err(LifecycleError::Failed { what: WHAT, why: chain(&error) }),
        };
        if let Err(error) = machine.cont().await {
            // Its process is as good as dead; `machine_ended` hears of it when it is.
            tracing::error!(error = chain(&error), "a machine does not go on after a snapshot");
            return Err(LifecycleError::Failed { what: WHAT, why: chain(&error) });
        }
        interruption::step("copy.2");
        self.tell_time(machine);
        copied
    }

    /// Has everything written to the guest's disk, and nothing more.
    pub(super) async fn freeze(&self, machine: &Machine) -> Result<(), LifecycleError> {
        let what = "The sandbox's file system could not be frozen; it runs on";
        let frozen = guest::freeze(&machine.connector()).await;
        frozen.map_err(|error| LifecycleError::Failed { what, why: chain(&error) })
    }

    pub(super) async fn thaw(&self, machine: &Machine) {
        if let Err(error) = guest::thaw(&machine.connector()).await {
            tracing::error!(error = chain(&error), "a frozen file system was not thawed; a resume will");
        }
    }

    /// The guest's clock stood still with it. Its streams go on, so this is no new run.
    pub(super) fn tell_time(&self, machine: &Machine) {
        let (row, token) = (self.row.clone(), self.node.access_token(&self.row));
        let (connector, lifecycle_id) = (machine.connector(), self.lifecycle_id.clone());
        let telling = async move {
            if let Err(error) = guest::init(&connector, &row.id, &row.record, token, lifecycle_id, None).await
            {
                tracing::warn!(error = chain(&error), "the clock is behind after a snapshot");
            }
        };
        tokio::spawn(telling.in_current_span());
    }
}

async fn blocking<T: Send + 'static>(
    span: tracing::Span,
    work: impl FnOnce() -> Result<T, SaveError> + Send + 'static,
) -> Result<T, LifecycleError> {
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|panic| LifecycleError::Failed { what: WHAT, why: panic.to_string() })?
        .map_err(LifecycleError::from)
}

impl From<SaveError> for LifecycleError {
    fn from(error: SaveError) -> LifecycleError {
        match error {
            SaveError::NoRoom(no_room) => no_room.into(),
            other => LifecycleError::Failed { what: WHAT, why: chain(&other) },
        }
    }
}

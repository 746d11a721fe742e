//! A machine that waits for a snapshot, and how it is given one.

use std::fs::File;
use std::io;

use crate::error::LoadError;
use crate::machine::Machine;
use crate::rehearsal::{Rehearsal, RehearsalError, Rehearsed, rehearse};

/// A machine that waits for a snapshot. Destroyed when dropped.
#[derive(Debug)]
pub struct Idle {
    /// Taken by what consumes it.
    machine: Option<Machine>,
    rehearsed: Option<Rehearsed>,
}

/// A snapshot, opened.
#[derive(Debug)]
pub struct LoadSource {
    /// The disk, on the same file system as the working disks.
    pub disk: File,
    /// The memory, opened read-only and flushed. Must never change as long as the machine lives; removing it is fine.
    pub memory: File,
    /// The device state.
    pub state: Vec<u8>,
    /// What a later server is to know of the machine.
    pub note: serde_json::Value,
}

// === impl Idle ===

impl Idle {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine: Some(machine), rehearsed: None }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| !machine.has_exited())
    }

    /// Name of what it has rehearsed; `None` if nothing.
    pub fn rehearsed(&self) -> Option<&str> {
        self.rehearsed.as_ref().map(|rehearsed| rehearsed.name.as_str())
    }

    /// Number of its process.
    pub fn pid(&self) -> Option<u32> {
        self.machine.as_ref().map(Machine::pid)
    }

    /// Lets it rehearse. On an error it is destroyed.
    pub(crate) async fn rehearse(mut self, rehearsal: &dyn Rehearsal) -> Result<Self, RehearsalError> {
        let machine = self.machine();
        match rehearse(&machine, rehearsal).await {
            Ok(rehearsed) => {
                self.rehearsed = Some(rehearsed);
                Ok(self)
            }
            Err(error) => {
                self.destroy().await;
                Err(error)
            }
        }
    }

    /// Gives it a snapshot. The machine is stopped afterwards; [`Machine::cont`] lets the guest go on.
    ///
    /// On an error the machine is destroyed.
    pub async fn load(mut self, source: LoadSource) -> Result<Machine, LoadError> {
        // Left in place until it is loaded: dropping this future destroys the machine.
        let machine = self.machine();
        match machine.load(source, self.rehearsed.take()).await {
            Ok(()) => {
                self.machine = None;
                Ok(machine)
            }
            Err(error) => {
                self.destroy().await;
                Err(error)
            }
        }
    }

    /// Ends it, and waits until it is gone.
    pub async fn destroy(mut self) {
        if let Some(machine) = self.machine.take() {
            machine.destroy().await;
        }
    }

    /// What [`Idle::load`] does for a snapshot is done by hand for a machine that boots.
    pub(crate) fn into_machine(mut self) -> Machine {
        let machine = self.machine();
        self.machine = None;
        machine
    }

    pub(crate) fn machine(&self) -> Machine {
        #[expect(clippy::expect_used, reason = "taken only by methods that consume self")]
        self.machine.clone().expect("an idle machine is there until it is consumed")
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.destroy_in_background();
        }
    }
}

// === impl Machine ===

impl Machine {
    /// Gives an idle machine its guest.
    #[tracing::instrument(name = "machine.load", skip_all, fields(machine = %self.id(), rehearsed = rehearsed.is_some()))]
    async fn load(&self, source: LoadSource, rehearsed: Option<Rehearsed>) -> Result<(), LoadError> {
        let LoadSource { disk, memory, state, note } = source;
        match rehearsed {
            None => self.load_first(disk, &memory, &state).await?,
            Some(rehearsed) => self.load_again(disk, memory, &state, rehearsed).await?,
        }
        self.set_note(note).map_err(LoadError::Record)
    }

    /// The first load of its life.
    pub(crate) async fn load_first(&self, disk: File, memory: &File, state: &[u8]) -> Result<(), LoadError> {
        let (cloned, mapped) =
            tokio::join!(self.clone_disk_from(disk), self.berth().memory.load(self.vm(), memory));
        cloned?;
        mapped?;
        Ok(self.vm().load_state(state).await?)
    }

    /// A load after a rehearsal.
    async fn load_again(
        &self,
        disk: File,
        memory: File,
        state: &[u8],
        rehearsed: Rehearsed,
    ) -> Result<(), LoadError> {
        let compared = memory.try_clone().map_err(LoadError::Memory)?;
        let span = tracing::info_span!("machine.compare_memory");
        let comparing = tokio::task::spawn_blocking(move || span.in_scope(|| rehearsed.stale(&compared)));
        let (cloned, mapped, stale) =
            tokio::join!(self.clone_disk_from(disk), self.vm().map_memory(&memory), comparing);
        cloned?;
        mapped?;
        let stale = stale.map_err(io::Error::other).flatten().map_err(LoadError::Memory)?;
        Ok(self.vm().load_state_again(state, &stale).await?)
    }

    /// Makes the working disk what it was before anything was cloned into it. The guest is stopped.
    pub(crate) async fn empty_disk(&self) -> io::Result<()> {
        let machine = self.clone();
        let emptying = move || {
            let working = &machine.berth().disk;
            working.set_len(0)?;
            working.set_len(machine.shape().disk_bytes())
        };
        tokio::task::spawn_blocking(emptying).await.map_err(io::Error::other)?
    }

    /// Makes the working disk a clone of `disk`, of the machine's size.
    pub(crate) async fn clone_disk_from(&self, disk: File) -> Result<(), LoadError> {
        let machine = self.clone();
        let span = tracing::info_span!("machine.clone_disk");
        let cloning = move || {
            span.in_scope(|| -> io::Result<()> {
                let working = &machine.berth().disk;
                rustix::fs::ioctl_ficlone(working, &disk)?;
                if working.metadata()?.len() != machine.shape().disk_bytes() {
                    working.set_len(machine.shape().disk_bytes())?;
                }
                Ok(())
            })
        };
        tokio::task::spawn_blocking(cloning)
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(LoadError::Disk)
    }
}

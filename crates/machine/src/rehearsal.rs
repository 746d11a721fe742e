//! Rehearsals: an idle machine that emulates runs a snapshot before anybody needs it, for what that teaches it.
//!
//! Under emulation, guest code is translated before it runs, and a guest's first answer after a resume is ten thousand
//! translations away: 150 ms and more of a processor's time. A machine that has run a snapshot like the one it is given has most
//! of them. So, in quiet moments, the pool lets its machines run the snapshot that most are made from; afterwards they are reset,
//! and what they wrote is dropped. Whatever is loaded later, translations of pages that are not the same are forgotten.
//!
//! Which are the same? Those of the rehearsed snapshot's memory that the machine has not written to, and that the other memory
//! file holds in the same block of the file system ([`extents`]). A page that is a hole in the rehearsed memory holds zeros,
//! which no guest runs, until it is written to.

use std::error::Error;
use std::fs::File;
use std::io;

use torpor_network::{Connector, EgressError, EgressPolicy};
use torpor_sys::PageRun;
use torpor_sys::extents::{Extent, extents, missing};

use crate::error::LoadError;
use crate::idle::LoadSource;
use crate::machine::Machine;
use crate::vmm::VmmError;

/// What machines rehearse.
#[async_trait::async_trait]
pub trait Rehearsal: std::fmt::Debug + Send + Sync {
    /// Another for each snapshot.
    fn name(&self) -> &str;

    /// The snapshot. Its memory and that of whatever is loaded later have to be flushed, and on one file system.
    async fn open(&self) -> Result<LoadSource, Box<dyn Error + Send + Sync>>;

    /// Has the guest do what guests are asked to do first. Everything it does is undone afterwards; it reaches nothing but
    /// its own network.
    async fn play(&self, guest: &Connector) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// What an idle machine has rehearsed.
#[derive(Debug)]
pub(crate) struct Rehearsed {
    pub(crate) name: String,
    /// Of the memory file.
    extents: Vec<Extent>,
    /// Pages of it that the guest wrote to, or gave back. Some may be told twice.
    written: Vec<PageRun>,
}

/// A machine that did not rehearse to the end. It is not to be used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RehearsalError {
    #[error("the snapshot could not be opened: {0}")]
    Open(Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the guest did not do as asked: {0}")]
    Play(Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Machine(#[from] VmmError),
    #[error("its network could not be closed and opened: {0}")]
    Network(#[from] EgressError),
    #[error("memory and disk could not be looked through: {0}")]
    Files(#[from] io::Error),
}

/// Lets an idle machine rehearse. Afterwards it is as it was, but for what it translated.
#[tracing::instrument(name = "machine.rehearse", skip_all, fields(machine = %machine.id(), rehearsal = rehearsal.name()))]
pub(crate) async fn rehearse(
    machine: &Machine,
    rehearsal: &dyn Rehearsal,
) -> Result<Rehearsed, RehearsalError> {
    let source = rehearsal.open().await.map_err(RehearsalError::Open)?;
    let memory = source.memory.try_clone()?;
    machine.network().set_egress(&EgressPolicy::nothing()).await?;
    machine.load_first(source.disk, &source.memory, &source.state).await?;
    machine.vm().cont().await?;
    rehearsal.play(&machine.connector()).await.map_err(RehearsalError::Play)?;
    machine.vm().stop().await?;
    machine.vm().reset().await?;
    // Where that cannot be (QEMU's program may not be writable), it is known before a sandbox waits for this machine.
    machine.vm().prepare_load_again().await?;
    // Those whose memory is shared do not rehearse.
    let unknown = || io::Error::other("it is not known where guest RAM lies in the process");
    let (pid, ram) = (machine.pid(), machine.vm().guest_ram().ok_or_else(unknown)?);
    let opened = memory.try_clone()?;
    let looking = move || -> io::Result<(Vec<PageRun>, Vec<Extent>)> {
        let mut written = torpor_sys::anonymous_pages(pid, ram.address, ram.len)?;
        // What the guest gave back has no pages any more, and may have had code before.
        written.extend(torpor_sys::anonymous_mappings(pid, ram.address, ram.len)?);
        Ok((written, extents(&opened)?))
    };
    let (written, extents) = tokio::task::spawn_blocking(looking).await.map_err(io::Error::other)??;
    // Drops what it wrote.
    machine.vm().map_memory(&memory).await?;
    machine.empty_disk().await?;
    machine.network().set_egress(&EgressPolicy::default()).await?;
    Ok(Rehearsed { name: rehearsal.name().to_owned(), extents, written })
}

// === impl Rehearsed ===

impl Rehearsed {
    /// The pages whose translations are worth nothing with `memory`. Blocks.
    pub(crate) fn stale(&self, memory: &File) -> io::Result<Vec<PageRun>> {
        let mut stale = missing(&self.extents, &extents(memory)?);
        stale.extend(&self.written);
        Ok(stale)
    }
}

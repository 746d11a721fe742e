//! Taking over the machines of an earlier server.
//!
//! A machine is given back if it has a note, its process is the one its record names, and its control socket answers.
//! Nothing is done where a newer Torpor left one that lives. Of everything else, every part is removed: processes (found
//! by their control group), control groups, run directories, disks.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::sync::Arc;

use torpor_types::MachineId;

use crate::berth::Berth;
use crate::error::{AdoptError, NotAdopted};
use crate::exit::Process;
use crate::machine::Machine;
use crate::machines::Inner;
use crate::memory::Memory;
use crate::record::Record;
use crate::vmm::RunState;

pub(crate) async fn adopt(machines: &Arc<Inner>) -> Result<Vec<Machine>, AdoptError> {
    let left = left(machines)?;
    for id in &left {
        if let Some(found) = Record::newer(&machines.ground.site(id).dir) {
            return Err(AdoptError::TooNew { machine: id.clone(), found, known: Record::KNOWN });
        }
    }
    let mut adopted = Vec::new();
    for id in left.into_iter().filter(|id| !machines.live.has(id)) {
        match adopt_one(machines, &id).await {
            Ok(machine) => {
                tracing::info!(machine = %id, pid = machine.pid(), runs = machine.runs(), "a machine was taken over");
                machines.live.add(&machine);
                adopted.push(machine);
            }
            Err(why) => {
                match why {
                    NotAdopted::Idle | NotAdopted::Gone => {
                        tracing::debug!(machine = %id, %why, "a machine is removed")
                    }
                    _ => tracing::warn!(machine = %id, %why, "a machine cannot be taken over and is removed"),
                }
                clear(machines, &id).await;
            }
        }
    }
    Ok(adopted)
}

/// Ends the machine and removes every part of it that is there.
pub(crate) async fn clear(machines: &Inner, id: &MachineId) {
    let site = machines.ground.site(id);
    let record = Record::read(&site.dir).ok();
    if let Some(process) = record.and_then(|record| Process::find(record.pid, record.start_ticks)) {
        process.kill().await;
    }
    if let Err(error) = tokio::task::spawn_blocking(move || site.remove()).await {
        tracing::error!(%error, machine = %id, "what a machine leaves could not be removed");
    }
}

/// Everything that looks like a part of a machine.
pub(crate) fn left(machines: &Inner) -> Result<BTreeSet<MachineId>, AdoptError> {
    let mut names = machines.ground.cgroups.names();
    for path in [machines.ground.machines_dir(), machines.ground.disks_dir.clone()] {
        let entries = fs::read_dir(&path).map_err(|source| AdoptError::List { path, source })?;
        names.extend(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()));
    }
    let ids = names.iter().filter_map(|name| name.parse().ok());
    Ok(ids.collect())
}

async fn adopt_one(machines: &Arc<Inner>, id: &MachineId) -> Result<Machine, NotAdopted> {
    let ground = &machines.ground;
    let site = ground.site(id);
    let record = Record::read(&site.dir).map_err(|error| match error.kind() {
        // Started, or stopped being removed, when the server ended.
        std::io::ErrorKind::NotFound => NotAdopted::Gone,
        _ => NotAdopted::Record(error),
    })?;
    let process = Process::find(record.pid, record.start_ticks).ok_or(NotAdopted::Gone)?;
    if record.note.is_none() {
        return Err(NotAdopted::Idle);
    }
    let disk = OpenOptions::new().read(true).write(true).open(site.disk_path()).map_err(NotAdopted::Disk)?;
    let memory = Memory::adopt(&record.ram, site.disk_dir(), record.shape).map_err(NotAdopted::Memory)?;
    let namespace = ground.network.adopt(record.pid).await?;
    let vm = machines.vmm.adopt(&site.dir, record.ram.mapped()).await?;
    let runs = match vm.run_state().await? {
        RunState::Running => true,
        RunState::Stopped | RunState::Captured => false,
        RunState::Idle => return Err(NotAdopted::Idle),
    };
    let uid = ground.uids.adopt(record.uid);
    let berth = Berth { id: id.clone(), shape: record.shape, site, disk, memory, namespace, uid };
    Ok(Machine::new(berth, vm, process, record, runs, Arc::downgrade(&machines.live)))
}

//! Control groups: what a machine may take of the host's processors, memory and process numbers.
//!
//! Both layouts in use are served: version 2 (one tree, `cgroup2`) and version 1 (a tree for each controller, also
//! beside an empty version 2 tree, as *hybrid* hosts have it). Own code rather than the `cgroups-rs` crate, which comes
//! with a D-Bus client and some ninety more crates for what is a handful of files here.
//!
//! A process is put into its group before it is QEMU ([`torpor_sys::in_cgroups`]), so the group of a machine also
//! finds the process of which nothing else is known.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use torpor_types::{Accelerator, MIB, Shape};

use crate::error::ClaimError;

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Threads of QEMU and of io_uring on its behalf; far above what is ever seen.
const MAX_PIDS: u32 = 512;
/// Length of the period in which processor time is counted.
const PERIOD_US: u64 = 100_000;

/// Where groups are made on this host.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    /// One for version 2, else one for each controller there is.
    trees: Vec<Tree>,
    instance: String,
}

#[derive(Debug, Clone)]
struct Tree {
    root: PathBuf,
    /// `None`: version 2, all controllers.
    controller: Option<&'static str>,
}

/// The group of one machine, in each tree.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dirs: Vec<PathBuf>,
}

// === impl Cgroups ===

impl Cgroups {
    /// Looks which controllers this host has, and where.
    pub(crate) fn detect(instance: &str) -> Self {
        // Without /proc nothing works, and other parts say so.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let has_controllers = |root: &Path| {
            fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|there| {
                CONTROLLERS.iter().all(|wanted| there.split_whitespace().any(|c| c == *wanted))
            })
        };
        let trees = trees(&mounts, has_controllers);
        let missing = if trees.is_empty() { CONTROLLERS.to_vec() } else { missing(&trees) };
        if !missing.is_empty() {
            tracing::warn!(
                ?missing,
                "the host has not all control groups: machines are not limited in these"
            );
        }
        Self { trees, instance: instance.to_owned() }
    }

    /// The group named `name`, which may or may not exist.
    pub(crate) fn of(&self, name: &str) -> Cgroup {
        let dir = |tree: &Tree| tree.root.join("torpor").join(&self.instance).join(name);
        Cgroup { dirs: self.trees.iter().map(dir).collect() }
    }

    /// Makes the group of a machine and sets its limits.
    pub(crate) fn create(
        &self,
        name: &str,
        shape: Shape,
        accelerator: Accelerator,
    ) -> Result<Cgroup, ClaimError> {
        let group = self.of(name);
        for (tree, dir) in self.trees.iter().zip(&group.dirs) {
            fs::create_dir_all(dir).map_err(|source| ClaimError::Cgroup { path: dir.clone(), source })?;
            if tree.controller.is_none() {
                for parent in dir
                    .ancestors()
                    .skip(1)
                    .take_while(|parent| parent.starts_with(&tree.root))
                    .collect::<Vec<_>>()
                    .iter()
                    .rev()
                {
                    set(&parent.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
                }
            }
            for (file, value) in limits(tree.controller, shape, accelerator) {
                set(&dir.join(file), &value)?;
            }
        }
        Ok(group)
    }

    /// Names of the groups that exist.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for tree in &self.trees {
            let Ok(entries) = fs::read_dir(tree.root.join("torpor").join(&self.instance)) else { continue };
            let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            names.extend(dirs.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Removes the directories that hold the groups, if no group is left.
    pub(crate) fn remove_if_empty(&self) {
        for tree in &self.trees {
            let ours = tree.root.join("torpor");
            // Errors mean that groups are left, of this server or of another.
            let _ = fs::remove_dir(ours.join(&self.instance));
            let _ = fs::remove_dir(ours);
        }
    }
}

// === impl Cgroup ===

impl Cgroup {
    /// What a process that is being started writes itself into.
    pub(crate) fn procs(&self) -> io::Result<Vec<OwnedFd>> {
        let open =
            |dir: &PathBuf| OpenOptions::new().write(true).open(dir.join("cgroup.procs")).map(File::into);
        self.dirs.iter().map(open).collect()
    }

    /// Ends what is left in the group and removes it. Blocks until the processes are gone.
    pub(crate) fn remove(&self) {
        let give_up = Instant::now() + Duration::from_secs(10);
        for dir in &self.dirs {
            while dir.exists() {
                for pid in pids(dir) {
                    let _ = kill_process(pid, Signal::KILL);
                }
                match fs::remove_dir(dir) {
                    // Busy: killed processes take a moment to leave.
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < give_up => {
                        std::thread::park_timeout(Duration::from_millis(2));
                    }
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(%error, dir = %dir.display(), "a control group could not be removed");
                        break;
                    }
                    _ => break,
                }
            }
        }
    }
}

fn pids(dir: &Path) -> Vec<Pid> {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

/// The files of a group and what is written to them.
fn limits(controller: Option<&str>, shape: Shape, accelerator: Accelerator) -> Vec<(&'static str, String)> {
    // Half a processor more than the guest has, for QEMU's own work.
    let quota_us = u64::from(shape.vcpus) * PERIOD_US + PERIOD_US / 2;
    // QEMU's own memory; under emulation also up to 1 GiB of translated code.
    let own = match accelerator {
        Accelerator::Kvm => 256 * MIB,
        Accelerator::Tcg => 1280 * MIB,
    };
    let memory = shape.memory_bytes() + shape.memory_bytes() / 8 + own;
    match controller {
        None => vec![
            ("cpu.max", format!("{quota_us} {PERIOD_US}")),
            ("memory.max", memory.to_string()),
            ("pids.max", MAX_PIDS.to_string()),
        ],
        Some("cpu") => {
            vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota_us.to_string())]
        }
        Some("memory") => vec![("memory.limit_in_bytes", memory.to_string())],
        Some(_) => vec![("pids.max", MAX_PIDS.to_string())],
    }
}

fn set(path: &Path, value: &str) -> Result<(), ClaimError> {
    match fs::write(path, value) {
        // A kernel built without that limit.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), "this kernel has no such limit");
            Ok(())
        }
        result => result.map_err(|source| ClaimError::Cgroup { path: path.to_owned(), source }),
    }
}

/// The trees to use, from the text of `/proc/self/mounts`.
fn trees(mounts: &str, has_controllers: impl Fn(&Path) -> bool) -> Vec<Tree> {
    let fields = |line: &'_ str| -> Option<(PathBuf, String, String)> {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?.into(), words.next()?.to_owned(), words.next()?.to_owned()))
    };
    let mounts: Vec<_> = mounts.lines().filter_map(fields).collect();
    if let Some((root, ..)) = mounts.iter().find(|(root, kind, _)| kind == "cgroup2" && has_controllers(root))
    {
        return vec![Tree { root: root.clone(), controller: None }];
    }
    let find = |controller: &'static str| {
        let has = |options: &str| options.split(',').any(|option| option == controller);
        let (root, ..) = mounts.iter().find(|(_, kind, options)| kind == "cgroup" && has(options))?;
        Some(Tree { root: root.clone(), controller: Some(controller) })
    };
    CONTROLLERS.into_iter().filter_map(find).collect()
}

fn missing(trees: &[Tree]) -> Vec<&'static str> {
    let has = |wanted: &&str| trees.iter().any(|tree| tree.controller.is_none_or(|there| there == *wanted));
    CONTROLLERS.into_iter().filter(|wanted| !has(wanted)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tree_is_used_where_there_is_one_and_three_where_there_are_three() {
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let found = trees(unified, |_| true);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].controller, None);
        let hybrid = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = trees(hybrid, |_| false);
        let roots: Vec<_> = found.iter().map(|tree| tree.root.to_str().unwrap()).collect();
        assert_eq!(roots, ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"]);
        assert_eq!(missing(&found), ["pids"]);
    }

    #[test]
    fn a_machine_gets_its_processors_and_half_a_one_for_qemu() {
        let shape = Shape { vcpus: 2, memory_mib: 1024, disk_mib: 1 };
        let limits = limits(None, shape, Accelerator::Kvm);
        assert_eq!(limits[0], ("cpu.max", "250000 100000".to_owned()));
    }
}

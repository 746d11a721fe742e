//! Template builds: from a recipe to a snapshot that sandboxes are resumed from.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use torpor_envd_api::http::InitRequest;
use torpor_machine::{BootSource, HostFacts, Machine, Machines};
use torpor_types::{MIB, SnapshotId};
use torpor_vault::{Kind, MachineFacts, ManifestDraft, Snapshot, Staging, Vault};

use crate::guest::{Guest, GuestError};
use crate::image::{self, ResizeError};
use crate::initramfs;
use crate::progress::Progress;
use crate::rootfs::{Rootfs, RootfsError, RootfsOptions};
use crate::spec::{TemplateRecord, TemplateSpec};

/// How long a machine may take until its agent answers: generous, since a busy host under emulation is slow.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Commands run once as the default user, so that what they read is in the guest's page cache and what they write once
/// is written: the first use after a create is as quick as the second.
const WARM_UP: [&str; 6] = [
    "true",
    "python3 -c 'import json, socket, subprocess, threading, http.client'",
    "node -e 0",
    "git --version; curl --version",
    "ls -la ~ /tmp; ps aux; sudo -n true",
    "cat /etc/os-release /etc/resolv.conf",
];

/// Builds templates.
#[derive(Debug, Clone)]
pub struct Builder {
    /// Where machines come from.
    pub machines: Machines,
    /// Where builds go.
    pub vault: Vault,
    /// How root file systems are built.
    pub rootfs: RootfsOptions,
    /// The agent, a static program.
    pub agent: PathBuf,
    /// Directory for what is needed while building.
    pub scratch: PathBuf,
}

/// A template could not be built. Nothing of the attempt is left, except a finished root file system in the cache.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its root file system could not be built.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The vault is full.
    #[error(transparent)]
    NoRoom(#[from] torpor_vault::NoRoom),
    /// The disk could not be made the size that was asked for.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The machine did not boot.
    #[error("the machine could not be booted: {0}")]
    Boot(String),
    /// The agent never answered.
    #[error(
        "the machine was started but its agent did not answer within {} s ({last}); the end of its console:\n{console}",
        BOOT_LIMIT.as_secs()
    )]
    NoAgent {
        /// The last failure.
        last: String,
        /// What the guest printed last.
        console: String,
    },
    /// The agent did not do as asked.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A command failed in the guest.
    #[error("the command `{command}` failed in the new machine with exit code {exit_code}: {output}")]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        exit_code: i64,
        /// What it printed.
        output: String,
    },
    /// Another step failed.
    #[error("cannot {step}: {why}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        why: String,
    },
}

// === impl Builder ===

impl Builder {
    /// Builds `spec` and publishes it. When this returns, the snapshot is durable.
    ///
    /// Must run on a multi-threaded runtime: parts of it block.
    #[tracing::instrument(name = "template.build", skip_all, fields(template = %spec.name))]
    pub async fn build(
        &self,
        spec: &TemplateSpec,
        progress: Arc<dyn Progress>,
    ) -> Result<(Snapshot, TemplateRecord), BuildError> {
        let rootfs = {
            let (recipe, options, progress) = (spec.recipe.clone(), self.rootfs.clone(), progress.clone());
            blocking(move || match Rootfs::find(&recipe, &options.cache_dir) {
                Some(rootfs) => Ok(rootfs),
                None => Rootfs::ensure(&recipe, &options, &*progress),
            })
            .await??
        };
        // Memory, at most all of it, and the disk: room for both before anything is changed.
        self.vault.require_room(spec.shape.memory_bytes() + rootfs.facts().allocated_bytes + 256 * MIB)?;

        progress.step("preparing the disk");
        let agent = fs::read(&self.agent).map_err(step("read the agent"))?;
        let record =
            spec.record(blake3::hash(&agent).to_hex().to_string(), rootfs.facts().kernel_release.clone());
        // Never published: it only lends the vault's file system to the disk that is booted from.
        let lender = self.vault.stage(SnapshotId::random()).map_err(step("stage the disk"))?;
        let (lender, disk) = {
            let (from, disk_mib) = (rootfs.disk(), spec.shape.disk_mib);
            blocking(move || make_disk(lender, &from, disk_mib)).await??
        };
        let scratch = Scratch::new(&self.scratch)?;
        let initramfs = scratch.initramfs(&agent, &rootfs)?;

        progress.step("booting the machine");
        let accelerator = self.machines.facts().accelerator;
        let source = BootSource {
            kernel: rootfs.kernel(),
            initramfs,
            cmdline: torpor_machine::guest_command_line(accelerator).to_owned(),
            disk,
        };
        let machine =
            self.machines.boot(&spec.shape, source).await.map_err(|error| BuildError::Boot(chain(&error)))?;
        let result = self.finish(spec, &record, &rootfs, &machine, &*progress).await;
        machine.destroy().await;
        drop(lender);
        Ok((result?, record))
    }

    /// From a machine that was just started to the published snapshot of it.
    async fn finish(
        &self,
        spec: &TemplateSpec,
        record: &TemplateRecord,
        rootfs: &Rootfs,
        machine: &Machine,
        progress: &dyn Progress,
    ) -> Result<Snapshot, BuildError> {
        let begin = Instant::now();
        machine.cont().await.map_err(step("start the machine"))?;
        let guest = Guest::new(machine.connector());
        wait_for_agent(&guest, machine).await?;
        tracing::info!(seconds = begin.elapsed().as_secs_f64(), "the agent answers");
        progress.note(&format!(
            "the agent answered {:.1} s after the machine was started",
            begin.elapsed().as_secs_f64()
        ));

        progress.step("warming it up");
        guest
            .init(&InitRequest {
                env_vars: Some(spec.env.clone()),
                timestamp: Some(Timestamp::now()),
                default_user: Some(spec.default_user.clone()),
                default_workdir: spec.default_workdir.clone(),
                template_id: Some(spec.template_id.to_string()),
                ..InitRequest::default()
            })
            .await?;
        let commands = WARM_UP.iter().map(|command| (spec.default_user.as_str(), *command));
        let last = [("root", "sync")];
        let all: Vec<_> = commands.chain(last).collect();
        for (index, (user, command)) in all.iter().enumerate() {
            let ended = guest.run(user, command).await?;
            if ended.exit_code != 0 {
                return Err(BuildError::Command {
                    command: (*command).to_owned(),
                    exit_code: ended.exit_code,
                    output: ended.output,
                });
            }
            progress.fraction((index + 1) as f64 / all.len() as f64);
        }

        progress.step("saving the snapshot");
        let state = machine.stop_and_capture().await.map_err(step("stop the machine"))?;
        let draft = ManifestDraft {
            kind: Kind::Template,
            created_at: Timestamp::now(),
            machine: machine_facts(self.machines.facts(), spec, rootfs),
            subject: serde_json::json!({ "template": record }),
        };
        let staging = self.vault.stage(SnapshotId::random()).map_err(step("stage the snapshot"))?;
        let (machine, memory_bytes) = (machine.clone(), spec.shape.memory_bytes());
        blocking(move || {
            let memory = staging.memory_file(memory_bytes).map_err(step("make the memory file"))?;
            let saved = machine
                .save_memory((&memory).into(), torpor_machine::Ahead::default(), &|| false)
                .map_err(step("save the memory"))?;
            tracing::info!(?saved, "memory saved");
            let disk = machine.open_disk().map_err(step("open the machine's disk"))?;
            staging.clone_disk(&disk).map_err(step("clone the disk"))?;
            staging.write_state(state.as_bytes()).map_err(step("write the device state"))?;
            staging.publish(draft, None).map_err(step("publish the snapshot"))
        })
        .await?
    }
}

fn make_disk(lender: Staging, from: &Path, disk_mib: u32) -> Result<(Staging, File), BuildError> {
    let from = File::open(from).map_err(step("open the root file system"))?;
    let bytes = from.metadata().map_err(step("open the root file system"))?.len();
    let to = lender.disk_file(bytes).map_err(step("make the disk"))?;
    image::copy_sparse(&from, &to).map_err(step("copy the root file system into the vault"))?;
    image::resize(&lender.dir().join("disk"), disk_mib)?;
    Ok((lender, to))
}

async fn wait_for_agent(guest: &Guest, machine: &Machine) -> Result<(), BuildError> {
    let mut last = String::from("no answer yet");
    let asking = async {
        loop {
            match guest.health().await {
                Ok(()) => return,
                Err(error) => last = chain(&error),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    let waited = tokio::select! {
        waited = tokio::time::timeout(BOOT_LIMIT, asking) => waited.is_ok(),
        _ = machine.exited() => {
            last = format!("QEMU ended: {}", machine.last_words());
            false
        }
    };
    match waited {
        true => Ok(()),
        false => Err(BuildError::NoAgent { last, console: machine.console() }),
    }
}

fn machine_facts(host: &HostFacts, spec: &TemplateSpec, rootfs: &Rootfs) -> MachineFacts {
    MachineFacts {
        shape: spec.shape,
        accelerator: host.accelerator,
        machine_type: host.machine_type.clone(),
        cpu_model: host.cpu_model.clone(),
        qemu_version: host.qemu_version.clone(),
        kernel_blake3: rootfs.facts().kernel_blake3.clone(),
        agent_version: torpor_envd_api::ENVD_VERSION.to_owned(),
        tsc_khz: host.tsc_khz,
    }
}

/// Files of one build, removed with it.
struct Scratch {
    directory: PathBuf,
}

// === impl Scratch ===

impl Scratch {
    fn new(parent: &Path) -> Result<Self, BuildError> {
        let directory = parent.join(SnapshotId::random().as_str());
        fs::create_dir_all(&directory).map_err(step("make the build's directory"))?;
        Ok(Self { directory })
    }

    fn initramfs(&self, agent: &[u8], rootfs: &Rootfs) -> Result<PathBuf, BuildError> {
        let path = self.directory.join("initramfs");
        let write = || -> io::Result<()> {
            let modules = rootfs.modules().map_err(io::Error::other)?;
            let mut file = initramfs::write(io::BufWriter::new(File::create(&path)?), agent, &modules)?;
            file.flush()
        };
        write().map_err(step("write the initramfs"))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "a build's directory stays behind");
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.map_err(step("go on: a part of the build ended early"))
}

fn step<E: std::error::Error>(step: &'static str) -> impl Fn(E) -> BuildError {
    move |error| BuildError::Step { step, why: chain(&error) }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

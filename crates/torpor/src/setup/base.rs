//! The template `base`: whether it is there and fits this host, and how it gets there.

use std::path::PathBuf;
use std::sync::Arc;

use torpor_machine::HostFacts;
use torpor_template::{BuildError, Builder, DEFAULT_MEMORY_MIB, RootfsOptions, TemplateRecord, TemplateSpec};
use torpor_vault::{Kind, Manifest, Snapshot, Vault};

use crate::embedded;
use crate::node::Node;
use crate::progress::Step;

/// A build of a template, as found in the vault.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    /// The snapshot's manifest.
    pub(crate) manifest: Manifest,
    /// The template's record in it.
    pub(crate) record: TemplateRecord,
}

// === impl Build ===

impl Build {
    /// Reads a manifest; `None` if it is not that of a template's build.
    pub(crate) fn read(manifest: &Manifest) -> Option<Self> {
        if manifest.kind != Kind::Template {
            return None;
        }
        let record = serde_json::from_value(manifest.subject.get("template")?.clone()).ok()?;
        Some(Self { manifest: manifest.clone(), record })
    }

    /// Why a build that was made earlier has to be made anew; empty if it is as good as new.
    pub(crate) fn outdated(&self, spec: &TemplateSpec) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        let mut check = |differs: bool, reason| {
            if differs {
                reasons.push(reason);
            }
        };
        check(self.record.recipe != spec.recipe.hash(), "what is in it has changed");
        check(self.record.agent_blake3 != embedded::agent_blake3(), "its agent is another version");
        check(self.record.shape != spec.shape, "its size has changed");
        check(self.record.env != spec.env, "its environment has changed");
        reasons
    }

    /// Why memory made on another host (or under another QEMU) cannot be used on this one; empty if it can.
    pub(crate) fn unfit(&self, host: &HostFacts) -> Vec<&'static str> {
        let made = &self.manifest.machine;
        let mut reasons = Vec::new();
        let mut check = |differs: bool, reason| {
            if differs {
                reasons.push(reason);
            }
        };
        check(made.accelerator != host.accelerator, "the accelerator is another");
        check(made.qemu_version != host.qemu_version, "QEMU is another version");
        check(made.machine_type != host.machine_type, "the machine type is another");
        check(made.cpu_model != host.cpu_model, "the CPU model is another");
        check(!host.tsc_fits(made.tsc_khz), "the processor's clock runs at another rate");
        reasons
    }
}

/// The newest build of the template `name` among `manifests`.
pub(crate) fn newest<'a>(name: &str, manifests: impl Iterator<Item = &'a Manifest>) -> Option<Build> {
    manifests
        .filter_map(Build::read)
        .filter(|build| build.record.name == name)
        .max_by_key(|build| build.manifest.created_at)
}

/// The newest build of `base` in `vault`.
pub(crate) fn newest_in(vault: &Vault) -> Result<Option<Build>, torpor_vault::ListError> {
    let listing = vault.list()?;
    Ok(newest("base", listing.snapshots.iter().map(Snapshot::manifest)))
}

/// Makes sure that `base` is in the vault and fits this host; tells `step` what it did. Its machines get `memory_mib`,
/// or as much as they had.
pub(crate) async fn ensure(
    node: &Node,
    rootfs: RootfsOptions,
    memory_mib: Option<u32>,
    scratch: PathBuf,
    step: Step,
) -> Result<Build, BuildError> {
    let list = |error: torpor_vault::ListError| BuildError::Step {
        step: "look for the template in the vault",
        why: error.to_string(),
    };
    let facts = node.machines.facts();
    let newest = newest_in(&node.vault).map_err(list)?;
    let memory_mib = memory_mib.or(newest.as_ref().map(|build| build.record.shape.memory_mib));
    let mut spec = TemplateSpec::base(facts.accelerator, memory_mib.unwrap_or(DEFAULT_MEMORY_MIB));
    let mut why = "there was none";
    if let Some(build) = newest {
        let reasons = [build.outdated(&spec), build.unfit(facts)].concat();
        match reasons.first() {
            None => {
                step.ok(&format!("{}, snapshot {}", describe(&build), build.manifest.id));
                return Ok(build);
            }
            Some(reason) => why = reason,
        }
        spec.template_id = build.record.template_id;
    }
    let builder = Builder {
        machines: node.machines.clone(),
        vault: node.vault.clone(),
        rootfs,
        agent: node.embedded.agent.clone(),
        scratch,
    };
    let step = Arc::new(step);
    let built = builder.build(&spec, step.clone()).await;
    let step = Arc::into_inner(step);
    match built {
        Ok((snapshot, record)) => {
            let build = Build { manifest: snapshot.manifest().clone(), record };
            if let Some(step) = step {
                step.ok(&format!("built ({why}): {}, snapshot {}", describe(&build), snapshot.id()));
            }
            Ok(build)
        }
        Err(error) => {
            if let Some(step) = step {
                step.failed();
            }
            Err(error)
        }
    }
}

fn describe(build: &Build) -> String {
    format!("{}, Linux {}", build.record.shape, build.record.kernel_release)
}

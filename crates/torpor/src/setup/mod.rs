//! `torpor setup`: everything a host needs before it can run sandboxes.
//!
//! Every step looks first and works only if something is missing, so running it again repairs, and interrupting it
//! at any point does no harm: what is half made is never taken for whole.

pub(crate) mod accelerator;
pub(crate) mod base;
pub(crate) mod os;
pub(crate) mod packages;
pub(crate) mod programs;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use torpor_template::{Rootfs, RootfsOptions};
use torpor_types::{Accelerator, MIB};
use torpor_vault::place::{self, PlaceOptions};

use crate::layout::DataDir;
use crate::node::{Node, NodeError};
use crate::progress::{Console, Step};
use crate::settings::Settings;
use packages::Plan;
use programs::{QEMU, QEMU_GOOD, QEMU_LEAST};

/// What set-up can be told, beside the settings of the server.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Set-up options")]
pub(crate) struct SetupOptions {
    /// Install missing host packages without asking
    #[arg(long, short)]
    pub(crate) yes: bool,

    /// Size of the vault's image, for instance 100G, where the data directory cannot clone files; an existing one
    /// is grown to it [default: by the free space]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, env = "TORPOR_VAULT_SIZE")]
    pub(crate) vault_size: Option<u64>,

    /// Do not build the template `base`
    #[arg(long)]
    pub(crate) no_template: bool,

    /// Memory of the sandboxes of `base`, for instance 2G; another size than it has builds it anew [default: what it has,
    /// at first 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory, env = "TORPOR_BASE_MEMORY")]
    pub(crate) base_memory: Option<u32>,

    /// Where built root file systems are kept, for every data directory on this host
    #[arg(long, value_name = "DIR", env = "TORPOR_CACHE_DIR", default_value = torpor_template::rootfs::DEFAULT_CACHE_DIR)]
    pub(crate) cache_dir: PathBuf,

    /// Debian mirror for template builds, for instance http://deb.debian.org/debian [default: the host's own]
    #[arg(long, value_name = "URL", env = "TORPOR_DEBIAN_MIRROR")]
    pub(crate) debian_mirror: Option<String>,
}

/// With less than this, the root file system's own programs do not fit.
const LEAST_MEMORY_MIB: u32 = 256;
/// More than anybody has asked for; what is larger is a slip.
const MOST_MEMORY_MIB: u32 = 64 * 1024;

/// What is there when set-up is done.
#[derive(Debug, Clone)]
pub(crate) struct SetUp {
    /// The build of `base`, unless it was not wanted.
    pub(crate) base: Option<base::Build>,
}

/// Set-up could not be finished. What was done stays done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// Not root.
    #[error("set-up needs root (packages, mounts, networks): run it with sudo")]
    NotRoot,
    /// Not a machine it runs on.
    #[error("Torpor runs on x86-64 hosts; this one is {0}")]
    Architecture(String),
    /// Packages are missing and may not be installed.
    #[error("host programs are missing. Run this again with --yes, or install them yourself:\n    {}", .0.join("\n    "))]
    NotAllowed(Vec<String>),
    /// Programs are missing and Torpor cannot install them here.
    #[error("{0}")]
    ByHand(String),
    /// Packages could not be installed.
    #[error(transparent)]
    Install(#[from] packages::InstallError),
    /// QEMU is missing or too old even now.
    #[error("{0}")]
    Qemu(String),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The database is of a newer version, or cannot be read.
    #[error(transparent)]
    Registry(#[from] torpor_control::registry::RegistryError),
    /// No place for the vault.
    #[error(transparent)]
    Place(#[from] place::PlaceError),
    /// The settings cannot be read.
    #[error(transparent)]
    Settings(#[from] crate::settings::SettingsError),
    /// The accelerator cannot be told.
    #[error(transparent)]
    Accelerator(#[from] accelerator::AcceleratorError),
    /// The root file system of `base` could not be built.
    #[error(transparent)]
    Rootfs(#[from] torpor_template::RootfsError),
    /// The node cannot be opened.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// `base` could not be built.
    #[error("the template `base` could not be built: {0}")]
    Base(#[from] torpor_template::BuildError),
    /// A thread ended early.
    #[error("a part of set-up ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// Sets the host up for the node in `data_dir`.
pub(crate) async fn run(
    data_dir: &Path,
    options: &SetupOptions,
    settings: &Settings,
) -> Result<SetUp, SetupError> {
    let console = Console::new();
    if std::env::consts::ARCH != "x86_64" {
        return Err(SetupError::Architecture(std::env::consts::ARCH.to_owned()));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(SetupError::NotRoot);
    }
    host_programs(&console, options.yes, settings.qemu.as_deref()).await?;

    let step = console.step("data directory");
    let unusable = |source| SetupError::DataDir { path: data_dir.to_owned(), source };
    let data_dir = ending(DataDir::create(data_dir).map_err(unusable), &step)?;
    // Before anything in it is brought to what this version expects.
    ending(torpor_control::registry::Registry::check(data_dir.root()).await, &step)?;
    step.ok(&data_dir.root().display().to_string());
    let settings = settings.clone().with_file(&data_dir)?;

    let place_options = PlaceOptions { image_bytes: options.vault_size };
    vault(&console, &data_dir, place_options).await?;

    let rootfs_options =
        RootfsOptions { cache_dir: options.cache_dir.clone(), mirror: options.debian_mirror.clone() };
    let recipe = torpor_template::Recipe::base();
    let mut kernel = Rootfs::find(&recipe, &options.cache_dir).map(|rootfs| rootfs.kernel());
    if !options.no_template {
        let rootfs = root_file_system(&console, rootfs_options.clone()).await?;
        kernel = Some(rootfs.kernel());
        let kept = torpor_template::kernels::keep(&data_dir.kernels(), &rootfs, crate::embedded::AGENT);
        kept.map_err(|source| SetupError::DataDir { path: data_dir.kernels(), source })?;
    }

    let step = console.step("accelerator");
    let found = {
        let (data_dir, setting) = (data_dir.clone(), settings.accelerator.clone());
        tokio::task::spawn_blocking(move || {
            accelerator::probe(&data_dir, setting.as_deref(), kernel.as_deref())
        })
        .await?
    };
    let found = ending(found, &step)?;
    match found.accelerator {
        Accelerator::Kvm => step.ok(&format!("KVM: {}", found.reason)),
        Accelerator::Tcg => step.warning(&format!("software emulation: {}", found.reason)),
    }

    if options.no_template {
        return Ok(SetUp { base: None });
    }
    let step = console.step("template base");
    let node = ending(Node::open(&data_dir, &settings, found.accelerator, place_options).await, &step)?;
    let built = base::ensure(&node, rootfs_options, options.base_memory, data_dir.templates(), step).await;
    Ok(SetUp { base: Some(built?) })
}

async fn host_programs(console: &Console, yes: bool, qemu: Option<&Path>) -> Result<(), SetupError> {
    let step = console.step("host programs");
    // A QEMU that the settings name need not be in the search path.
    let mut missing = programs::missing();
    missing.retain(|needed| !(needed.name == QEMU && qemu.is_some()));
    let program = || qemu.map(Path::to_owned).or_else(|| programs::find(QEMU));
    let version = || program().and_then(|program| programs::qemu_version(&program));
    let plan = match qemu {
        Some(_) => packages::plan(&os::Os::read(), &missing, Some(QEMU_GOOD)),
        None => packages::plan(&os::Os::read(), &missing, version()),
    };
    let mut done = String::new();
    match plan {
        Plan::Nothing => {}
        Plan::ByHand(text) => {
            step.failed();
            return Err(SetupError::ByHand(text));
        }
        Plan::Apt(apt) => {
            if !yes && !packages::ask(&apt) {
                step.failed();
                return Err(SetupError::NotAllowed(apt.command_lines()));
            }
            let step = Arc::new(step);
            let installing = step.clone();
            let lines = apt.command_lines();
            let installed = tokio::task::spawn_blocking(move || apt.install(&installing)).await?;
            let step = Arc::into_inner(step).unwrap_or_else(|| console.step("host programs"));
            ending(installed, &step)?;
            done = format!("; done: {}", lines.join(", "));
            return qemu_is_good_enough(step, version(), &done);
        }
    }
    qemu_is_good_enough(step, version(), &done)
}

fn qemu_is_good_enough(
    step: Step,
    version: Option<programs::QemuVersion>,
    done: &str,
) -> Result<(), SetupError> {
    match version {
        None => {
            step.failed();
            Err(SetupError::Qemu(format!("{QEMU} does not say its version: is it a QEMU that runs here?")))
        }
        Some(version) if version < QEMU_LEAST => {
            step.failed();
            Err(SetupError::Qemu(format!("QEMU {version} is too old: {QEMU_LEAST} is the least that works")))
        }
        Some(version) if version < QEMU_GOOD => {
            step.warning(&format!("QEMU {version} works; {QEMU_GOOD} or newer emulates far better{done}"));
            Ok(())
        }
        Some(version) => {
            step.ok(&format!("QEMU {version} and all else is there{done}"));
            Ok(())
        }
    }
}

async fn vault(console: &Console, data_dir: &DataDir, options: PlaceOptions) -> Result<(), SetupError> {
    let step = console.step("vault");
    let root = data_dir.root().to_owned();
    step.doing("looking for a file system that clones files");
    let placed = tokio::task::spawn_blocking(move || {
        let grow = match (options.image_bytes, place::inspect(&root)?.image_bytes) {
            (Some(wanted), Some(there)) if wanted > there => Some(wanted),
            _ => None,
        };
        let place = place::prepare(&root, &options)?;
        if let Some(bytes) = grow {
            place::grow(&root, bytes)?;
        }
        place::inspect(&root).map(|inspection| (place, inspection, grow.is_some()))
    });
    let (place, inspection, grown) = ending(placed.await?, &step)?;
    let text = match (&place.image, inspection.image_bytes) {
        (Some(image), Some(bytes)) => {
            format!(
                "{} ({} sparse XFS image{})",
                image.display(),
                size(bytes),
                if grown { ", grown" } else { "" }
            )
        }
        _ => format!("{} ({} clones files)", place.vault_dir.display(), inspection.file_system),
    };
    step.ok(&text);
    Ok(())
}

async fn root_file_system(console: &Console, options: RootfsOptions) -> Result<Rootfs, SetupError> {
    let step = Arc::new(console.step("root file system"));
    let building = step.clone();
    let rootfs = tokio::task::spawn_blocking(move || {
        Rootfs::ensure(&torpor_template::Recipe::base(), &options, &*building)
    })
    .await?;
    let step = Arc::into_inner(step).unwrap_or_else(|| console.step("root file system"));
    let rootfs = ending(rootfs, &step)?;
    step.ok(&format!(
        "Debian trixie, {}, Linux {}",
        size(rootfs.facts().allocated_bytes),
        rootfs.facts().kernel_release
    ));
    Ok(rootfs)
}

/// Marks the step as failed if `result` is an error.
fn ending<T, E>(result: Result<T, E>, step: &Step) -> Result<T, E> {
    if result.is_err() {
        step.mark_failed();
    }
    result
}

/// `1.1 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / MIB as f64;
    match mib {
        mib if mib >= 1024.0 => format!("{:.1} GiB", mib / 1024.0),
        mib => format!("{mib:.0} MiB"),
    }
}

/// Reads `100G`, `1.5T`, `800M` or a number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let help = || format!("'{text}' is no size: use a number with M, G or T, for instance 100G");
    let number = text.trim().trim_end_matches(['b', 'B', 'i']);
    let (number, unit) = match number.char_indices().last() {
        Some((at, 'k' | 'K')) => (&number[..at], 1_u64 << 10),
        Some((at, 'm' | 'M')) => (&number[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&number[..at], 1 << 30),
        Some((at, 't' | 'T')) => (&number[..at], 1 << 40),
        _ => (number, 1),
    };
    let number: f64 = number.trim().parse().map_err(|_| help())?;
    let bytes = number * unit as f64;
    // Saturates beyond what a file can be, which the vault refuses.
    if bytes.is_finite() && bytes >= 1.0 { Ok(bytes as u64) } else { Err(help()) }
}

/// Reads the memory of a machine, as [`parse_size`] does; in MiB.
fn parse_memory(text: &str) -> Result<u32, String> {
    let mib = parse_size(text)? / MIB;
    match u32::try_from(mib) {
        Ok(mib) if (LEAST_MEMORY_MIB..=MOST_MEMORY_MIB).contains(&mib) => Ok(mib),
        _ => Err(format!("'{text}' is no memory for a machine: from 256M to 64G")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("100G", 100 << 30), ("1.5T", 3 << 39), ("800MiB", 800 << 20), ("4096", 4096), ("2gb", 2 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1G", "nanG", "0", "ten"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_read_in_mib_and_what_no_machine_can_have_is_refused() {
        assert_eq!(parse_memory("1.5G"), Ok(1536));
        for text in ["512", "1M", "2T", "lots"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_size_reader_panic(text in "\\PC{0,12}") {
            let _ = parse_size(&text);
        }
    }
}

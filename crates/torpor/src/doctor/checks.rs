//! The checks, in the order of what stands on what.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use torpor_machine::{HostFacts, MemoryMode};
use torpor_network::{FindingLevel, NetworkOptions};
use torpor_template::TemplateSpec;
use torpor_types::Accelerator;
use torpor_vault::Manifest;
use torpor_vault::place::{self, Inspection};

use super::{Check, code};
use crate::layout::DataDir;
use crate::lock::DataDirLock;
use crate::settings::Settings;
use crate::setup::programs::{self, QEMU, QEMU_GOOD, QEMU_LEAST};
use crate::setup::{accelerator, base, os, packages, size};

/// What a vault should have free: a template and a few pauses.
const VAULT_WANTS_BYTES: u64 = 4 << 30;

/// Looks at everything. Blocks for some hundred milliseconds.
pub(super) fn all(data_dir: &Path, settings: &Settings) -> Vec<Check> {
    let mut checks = vec![root(), host(), programs(settings)];
    checks.extend(qemu(settings));
    checks.extend([pagemap_scan(), io_uring(), cgroups()]);
    let Ok(data_dir) = DataDir::existing(data_dir) else {
        checks.extend(network(&NetworkOptions::new(unnamed())));
        checks.push(Check::fail(
            "data directory",
            code::NOT_SET_UP,
            format!("{} does not exist", data_dir.display()),
            "Run `torpor setup`, with --data-dir if it is to be elsewhere.",
        ));
        return checks;
    };
    let settings = match settings.clone().with_file(&data_dir) {
        Ok(settings) => settings,
        Err(error) => {
            checks.push(Check::fail("settings", code::SETTINGS, error.to_string(), "Correct the file."));
            settings.clone()
        }
    };
    checks.extend(network(&network_options(&data_dir, &settings)));
    checks.push(permissions(&data_dir, &settings));
    checks.push(accelerator_check(&data_dir, &settings));
    checks.push(memory(&settings));
    checks.extend(vault(&data_dir, &settings));
    checks.push(server(&data_dir));
    checks
}

fn root() -> Check {
    match rustix::process::geteuid().is_root() {
        true => Check::ok("root", "running as root"),
        false => Check::fail(
            "root",
            code::NOT_ROOT,
            "not running as root: machines need networks, mounts and users of their own",
            "Run it with sudo.",
        ),
    }
}

fn host() -> Check {
    let uname = rustix::system::uname();
    let (machine, release) = (uname.machine().to_string_lossy(), uname.release().to_string_lossy());
    match std::env::consts::ARCH {
        "x86_64" => Check::ok("host", format!("{}, Linux {release}, {machine}", os::Os::read().name)),
        other => Check::fail(
            "host",
            code::ARCHITECTURE,
            format!("the processor is {other}"),
            "Use an x86-64 host.",
        ),
    }
}

fn programs(settings: &Settings) -> Check {
    let mut missing = programs::missing();
    missing.retain(|needed| !(needed.name == QEMU && settings.qemu.is_some()));
    if missing.is_empty() {
        return Check::ok("programs", "all there");
    }
    let names: Vec<&str> = missing.iter().map(|needed| needed.name).collect();
    let todo = match packages::plan(&os::Os::read(), &missing, None) {
        packages::Plan::ByHand(text) => text,
        packages::Plan::Apt(apt) => format!("Run `torpor setup`, or: {}", apt.command_lines().join("; ")),
        packages::Plan::Nothing => "Run `torpor setup`.".to_owned(),
    };
    Check::fail("programs", code::PROGRAM_MISSING, format!("missing: {}", names.join(", ")), todo)
}

fn qemu(settings: &Settings) -> Option<Check> {
    let program = settings.qemu.clone().or_else(|| programs::find(QEMU))?;
    let shown = program.display();
    let todo = "On Debian 12 `torpor setup` takes it from backports; Debian 13 has QEMU 10.";
    Some(match programs::qemu_version(&program) {
        None => Check::fail(
            "QEMU",
            code::QEMU_OLD,
            format!("{shown} does not say its version"),
            "Install QEMU anew.",
        ),
        Some(version) if version < QEMU_LEAST => Check::fail(
            "QEMU",
            code::QEMU_OLD,
            format!("{shown} is version {version}, and {QEMU_LEAST} is the least that works"),
            todo,
        ),
        Some(version) if version < QEMU_GOOD => Check::warn(
            "QEMU",
            code::QEMU_OLD,
            format!("{shown} is version {version}; from {QEMU_GOOD} on emulation is far better"),
            todo,
        ),
        Some(version) => Check::ok("QEMU", format!("{shown}, version {version}")),
    })
}

/// The kernel finds dirtied pages itself from 6.7 on.
fn pagemap_scan() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version >= (6, 7) {
        true => Check::ok("finding pages", "the kernel finds dirtied memory by itself (PAGEMAP_SCAN)"),
        false => Check::ok(
            "finding pages",
            "dirtied memory is found by reading the page map (no PAGEMAP_SCAN before Linux 6.7)",
        ),
    }
}

fn io_uring() -> Check {
    match torpor_sys::io_uring_works() {
        true => Check::ok("disk I/O", "io_uring"),
        false => Check::warn(
            "disk I/O",
            code::KERNEL,
            "io_uring is switched off; machines use threads for their disks, which is slower",
            "Allow it with `sysctl kernel.io_uring_disabled=0`.",
        ),
    }
}

fn cgroups() -> Check {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    match cgroup_kind(&mounts, &controllers) {
        Ok(kind) => Check::ok("control groups", kind),
        Err(why) => Check::warn(
            "control groups",
            code::NO_CGROUPS,
            why,
            "Mount the cgroup2 file system on /sys/fs/cgroup, as systemd does.",
        ),
    }
}

/// Which control groups there are for processors, memory and processes.
fn cgroup_kind(mounts: &str, unified_controllers: &str) -> Result<String, String> {
    const WANTED: [&str; 3] = ["cpu", "memory", "pids"];
    let unified: Vec<&str> = unified_controllers.split_whitespace().collect();
    if WANTED.iter().all(|wanted| unified.contains(wanted)) {
        return Ok("version 2".to_owned());
    }
    let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let first: Vec<Vec<&str>> = lines.filter(|fields| fields.get(2) == Some(&"cgroup")).collect();
    let has = |wanted: &str| {
        first
            .iter()
            .any(|fields| fields.get(3).is_some_and(|options| options.split(',').any(|o| o == wanted)))
    };
    let missing: Vec<&str> = WANTED.into_iter().filter(|wanted| !has(wanted)).collect();
    match missing.is_empty() {
        true => Ok("version 1, or version 1 beside 2".to_owned()),
        false => Err(format!(
            "no control group for {}: a sandbox can take more than its share",
            missing.join(", ")
        )),
    }
}

fn network(options: &NetworkOptions) -> Vec<Check> {
    let check = |finding: torpor_network::Finding| {
        let (why, todo) = match finding.text.split_once(": ") {
            Some((why, todo)) => (why.to_owned(), capital(todo)),
            None => (finding.text.clone(), "See docs/errors.md.".to_owned()),
        };
        match finding.level {
            FindingLevel::Good => Check::ok("network", finding.text),
            FindingLevel::Warning => Check::warn("network", code::NO_INTERNET, why, todo),
            FindingLevel::Error => Check::fail("network", code::NETWORK, why, todo),
        }
    };
    torpor_network::check(options).into_iter().map(check).collect()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect::<String>() + ".").unwrap_or_default()
}

fn network_options(data_dir: &DataDir, settings: &Settings) -> NetworkOptions {
    let mut options = NetworkOptions::new(data_dir.instance().parse().unwrap_or_else(|_| unnamed()));
    options.resolver = settings.resolver;
    options
}

/// Stands for a server that does not exist yet.
fn unnamed() -> torpor_network::Instance {
    const NAME: &str = "00000000";
    match NAME.parse() {
        Ok(instance) => instance,
        // Eight zeros are eight hexadecimal digits.
        Err(_) => unreachable!(),
    }
}

fn permissions(data_dir: &DataDir, settings: &Settings) -> Check {
    let path = data_dir.root().display();
    let mode = match fs::metadata(data_dir.root()) {
        Ok(metadata) => metadata.permissions().mode() & 0o777,
        Err(error) => {
            return Check::fail(
                "data directory",
                code::DATA_DIR,
                format!("{path}: {error}"),
                "Run `torpor setup`.",
            );
        }
    };
    if mode & 0o111 != 0o111 {
        return Check::fail(
            "data directory",
            code::DATA_DIR,
            format!(
                "{path} has mode {mode:o}: machines, which run as users of their own, cannot pass through"
            ),
            format!("Run `torpor setup`, or: chmod 711 {path}"),
        );
    }
    if settings.vault_memory() == MemoryMode::Private && noexec(data_dir.root()) {
        return Check::fail(
            "data directory",
            code::DATA_DIR,
            format!(
                "{path} is on a file system mounted noexec, and the library preloaded into QEMU is kept there"
            ),
            "Mount it without noexec, choose another --data-dir, or set vault_memory = \"shared\", which does without it.",
        );
    }
    if mode & 0o044 != 0 {
        return Check::warn(
            "data directory",
            code::DATA_DIR,
            format!("{path} has mode {mode:o}: every user of this host can list it"),
            format!("Run: chmod 711 {path}"),
        );
    }
    Check::ok("data directory", path.to_string())
}

fn noexec(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

fn accelerator_check(data_dir: &DataDir, settings: &Settings) -> Check {
    let name = "accelerator";
    let chosen = match accelerator::chosen(data_dir, settings.accelerator.as_deref()) {
        Ok(chosen) => chosen,
        Err(error) => return Check::fail(name, code::NOT_SET_UP, error.to_string(), "Run `torpor setup`."),
    };
    let asked = matches!(settings.accelerator.as_deref(), Some("kvm" | "tcg"));
    let reason = match accelerator::found(data_dir) {
        _ if asked => "the setting `accelerator` says so".to_owned(),
        Ok(Some(found)) => found.reason,
        _ => "the reason is not known".to_owned(),
    };
    match chosen {
        Accelerator::Kvm => Check::ok(name, format!("KVM: {reason}")),
        Accelerator::Tcg => Check::warn(
            name,
            code::EMULATION,
            format!(
                "software emulation: {reason}. Against native speed, starting Python takes 10 times as long, starting \
                 Node.js 5, fork and exec 7, loops in Python 11 to 14, gzip 6; pause and resume are as quick as with KVM"
            ),
            "For more speed use a host with hardware virtualisation (a bare-metal machine, or a VM with nested \
             virtualisation), load kvm_intel or kvm_amd, and run `torpor setup` again.",
        ),
    }
}

/// Which of the two it is; both work.
fn memory(settings: &Settings) -> Check {
    let name = "machine memory";
    match settings.vault_memory() {
        MemoryMode::Private => {
            Check::ok(name, "private: mapped over the snapshot's file by a library preloaded into QEMU")
        }
        MemoryMode::Shared => Check::ok(
            name,
            "shared: a file in the vault for each machine, nothing is preloaded into QEMU; machines of one snapshot share no memory",
        ),
    }
}

fn vault(data_dir: &DataDir, settings: &Settings) -> Vec<Check> {
    let inspection = match place::inspect(data_dir.root()) {
        Ok(inspection) => inspection,
        Err(error) => {
            return vec![Check::fail("vault", code::CANNOT_CLONE, error.to_string(), "Run `torpor setup`.")];
        }
    };
    let (check, readable) = vault_place(data_dir, &inspection);
    match readable {
        true => vec![check, template(data_dir, settings)],
        false => vec![check],
    }
}

/// Whether the vault can be used, and whether it can be looked into now.
fn vault_place(data_dir: &DataDir, inspection: &Inspection) -> (Check, bool) {
    let name = "vault";
    let place = match inspection.image_bytes {
        Some(bytes) => format!("{} XFS image {}", size(bytes), data_dir.root().join("vault.img").display()),
        None => format!("{} on {}", data_dir.vault().display(), inspection.file_system),
    };
    if inspection.image_bytes.is_none() && !inspection.clones {
        return (
            Check::fail(
                name,
                code::CANNOT_CLONE,
                format!("{} cannot clone files, and there is no image that could", inspection.file_system),
                "Run `torpor setup`: it makes an XFS image in the data directory. Or put the data directory on XFS \
                 (reflink=1) or btrfs.",
            ),
            false,
        );
    }
    if inspection.image_bytes.is_some() && !inspection.mounted {
        return (Check::ok(name, format!("{place}, not mounted; the server mounts it")), false);
    }
    if !data_dir.vault().join("VERSION").exists() {
        return (
            Check::fail(name, code::NOT_SET_UP, format!("{place} is empty"), "Run `torpor setup`."),
            false,
        );
    }
    let free = free_bytes(&data_dir.vault()).unwrap_or(0).min(match inspection.image_bytes {
        // A sparse image holds no more than the file system it is in.
        Some(_) => inspection.free_bytes,
        None => u64::MAX,
    });
    let found = format!("{place}, {} free", size(free));
    if free < VAULT_WANTS_BYTES {
        let todo = "Kill sandboxes that are not needed, free space on the disk, or grow the vault with `torpor setup --vault-size`.";
        return (Check::warn(name, code::VAULT_FULL, found, todo), true);
    }
    (Check::ok(name, found), true)
}

fn free_bytes(path: &Path) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|stat| stat.f_bavail * stat.f_frsize)
}

/// Looks at the manifests by itself: opening the vault would disturb a server that has it open.
fn template(data_dir: &DataDir, settings: &Settings) -> Check {
    let name = "template base";
    let snapshots = fs::read_dir(data_dir.vault().join("snapshots")).into_iter().flatten().flatten();
    let manifests: Vec<Manifest> = snapshots
        .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path().join("manifest.json")).ok()?).ok())
        .collect();
    let Some(build) = base::newest("base", manifests.iter()) else {
        return Check::fail(
            name,
            code::NO_TEMPLATE,
            "there is none: no sandbox can be created",
            "Run `torpor setup`.",
        );
    };
    let found = format!(
        "snapshot {}, built {:.0}, {}",
        build.manifest.id, build.manifest.created_at, build.record.shape
    );
    let accelerator = accelerator::chosen(data_dir, settings.accelerator.as_deref())
        .unwrap_or(build.manifest.machine.accelerator);
    let unfit = host_facts(&build, accelerator, settings).map(|host| build.unfit(&host));
    if let Some(reason) = unfit.as_ref().and_then(|reasons| reasons.first()) {
        return Check::fail(
            name,
            code::TEMPLATE_UNFIT,
            format!("{found}; it cannot be resumed here, since {reason}"),
            "Run `torpor setup`, which builds it anew.",
        );
    }
    if let Some(reason) =
        build.outdated(&TemplateSpec::base(accelerator, build.record.shape.memory_mib)).first()
    {
        return Check::warn(
            name,
            code::TEMPLATE_UNFIT,
            format!("{found}; it works, but {reason}"),
            "Run `torpor setup`, which builds it anew.",
        );
    }
    Check::ok(name, found)
}

/// This host, as far as it can be told without starting what runs machines; `None` without QEMU.
fn host_facts(build: &base::Build, accelerator: Accelerator, settings: &Settings) -> Option<HostFacts> {
    let program = settings.qemu.clone().or_else(|| programs::find(QEMU))?;
    let made = &build.manifest.machine;
    let tsc_khz = match accelerator {
        Accelerator::Kvm => 0,
        Accelerator::Tcg => torpor_sys::tsc_khz().map_or(0, u64::from),
    };
    Some(HostFacts {
        accelerator,
        machine_type: made.machine_type.clone(),
        cpu_model: made.cpu_model.clone(),
        qemu_version: programs::qemu_version_text(&program)?,
        tsc_khz,
    })
}

fn server(data_dir: &DataDir) -> Check {
    match DataDirLock::holder(data_dir) {
        Some(pid) => Check::ok("server", format!("process {pid} serves this data directory")),
        None => Check::ok("server", "none runs; start it with `torpor serve`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_control_groups_are_known_and_their_absence_is_named() {
        assert_eq!(cgroup_kind("", "cpuset cpu io memory pids\n"), Ok("version 2".to_owned()));
        let hybrid = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n";
        assert!(cgroup_kind(hybrid, "").unwrap().contains("version 1"));
        let why = cgroup_kind("cgroup /c/memory cgroup rw,memory 0 0\n", "").unwrap_err();
        assert!(why.contains("cpu, pids"), "{why}");
    }

    #[test]
    fn a_host_that_was_never_set_up_is_told_to_set_up() {
        let dir = tempfile::tempdir().unwrap();
        let checks = all(&dir.path().join("none"), &Settings::default());
        let last = checks.last().unwrap();
        assert_eq!(last.code, Some(code::NOT_SET_UP));
        assert!(last.todo.as_ref().unwrap().contains("torpor setup"));
    }
}

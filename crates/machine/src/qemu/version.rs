//! Which QEMU this host has.

use std::path::{Path, PathBuf};
use std::process::Command;

use torpor_types::Accelerator;

use super::command;
use crate::error::StartError;
use crate::facts::HostFacts;

/// Starts in 10…15 ms less than the full one, for it links a quarter of the libraries; has no emulator.
const SMALL: &str = "qemu-system-x86_64-microvm";
const FULL: &str = "qemu-system-x86_64";

/// Releases whose machines keep translations of guest code through a load. What the preloaded library calls of QEMU
/// for that (crates/ram-map, translations.rs) may be another thing in others: look there before one is added.
const KEEPS_TRANSLATIONS: [&str; 1] = ["10.0."];

/// Whether a QEMU of that version keeps translations through a load.
pub(crate) fn keeps_translations(version: &str) -> bool {
    KEEPS_TRANSLATIONS.iter().any(|release| version.starts_with(release))
}

/// The program to use, by its full path, and its version.
pub(crate) fn find(
    configured: Option<&Path>,
    accelerator: Accelerator,
) -> Result<(PathBuf, String), StartError> {
    let candidates: Vec<PathBuf> = match (configured, accelerator) {
        (Some(path), _) => vec![path.to_owned()],
        (None, Accelerator::Kvm) => vec![SMALL.into(), FULL.into()],
        (None, Accelerator::Tcg) => vec![FULL.into()],
    };
    let found = candidates.iter().find_map(|candidate| in_path(candidate));
    let wanted = candidates.last().cloned().unwrap_or_default();
    let program = found.ok_or_else(|| StartError::NoQemu { qemu: wanted, why: "not found".to_owned() })?;
    let output = Command::new(&program).arg("--version").output();
    let output =
        output.map_err(|error| StartError::NoQemu { qemu: program.clone(), why: error.to_string() })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match parse(&text) {
        None => Err(StartError::NoQemu { qemu: program, why: format!("it says '{}'", text.trim()) }),
        Some((version, (major, minor))) if (major, minor) < (8, 2) => {
            Err(StartError::OldQemu { found: format!("QEMU {version}") })
        }
        Some((version, _)) => Ok((program, version)),
    }
}

/// What runs machines here.
pub(crate) fn facts(accelerator: Accelerator, qemu_version: String) -> HostFacts {
    let (cpu_model, tsc_khz) = match accelerator {
        Accelerator::Kvm => (format!("{} on {}", command::KVM_CPU, host_cpu()), 0),
        Accelerator::Tcg => (command::TCG_CPU.to_owned(), torpor_sys::tsc_khz().map_or(0, u64::from)),
    };
    let machine_type = format!("{} {}", command::MACHINE, command::DEVICES);
    HostFacts { accelerator, machine_type, cpu_model, qemu_version, tsc_khz }
}

/// The host's processor, as the kernel names it, with what it can do: a guest that was told of a feature must not lose
/// it. Features are hashed, for there are hundreds.
fn host_cpu() -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("", |(_, value)| value).trim().to_owned()
    };
    let mut features = DefaultHasher::new();
    value("flags").hash(&mut features);
    format!("{} ({:016x})", value("model name"), features.finish())
}

fn in_path(program: &Path) -> Option<PathBuf> {
    if program.is_absolute() {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|full| full.is_file())
}

/// `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)` → `10.0.2`
fn parse(text: &str) -> Option<(String, (u32, u32))> {
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((version.to_owned(), (numbers.next()??, numbers.next()??)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_what_qemu_says_of_itself() {
        let text =
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025";
        assert_eq!(parse(text), Some(("10.0.2".to_owned(), (10, 0))));
        assert_eq!(parse("something else"), None);
    }
}

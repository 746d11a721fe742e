//! What executes guests on this host: found out once, by trying, and written down with the reason.
//!
//! `/dev/kvm` alone proves nothing: there are hosts whose KVM lacks hardware virtualisation and cannot run an ordinary kernel. So KVM is chosen when the
//! processor's own module is loaded (`kvm_intel` or `kvm_amd`) **and** a guest kernel, booted for the
//! purpose, gets as far as looking for its root file system.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use torpor_types::Accelerator;

use super::programs::{QEMU, find};
use crate::layout::DataDir;

/// What was found at set-up: `accelerator.json` in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// What executes guests.
    pub(crate) accelerator: Accelerator,
    /// Why.
    pub(crate) reason: String,
    /// When it was found out.
    pub(crate) probed_at: jiff::Timestamp,
}

/// The accelerator cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceleratorError {
    /// The setting names none.
    #[error("'{0}' is no accelerator: use auto, kvm or tcg")]
    Unknown(String),
    /// Set-up never looked.
    #[error(
        "it is not known what can run guests on this host: run `torpor setup`, or set `accelerator` to kvm or tcg"
    )]
    NotProbed,
    /// The record cannot be read or written.
    #[error("cannot use {path}: {why}; `torpor setup` writes it anew")]
    Record {
        /// The file.
        path: String,
        /// Why not.
        why: String,
    },
}

/// A KVM guest that prints nothing for this long is not going to.
const BOOT_LIMIT: Duration = Duration::from_secs(20);

/// Text of the kernel's that only a working guest prints: it has no root file system, which it finds out last.
const MARKERS: [&str; 3] = ["Unable to mount root fs", "No working init found", "Run /init as init process"];

const FILE: &str = "accelerator.json";

/// The accelerator to use: `setting` if it names one, else what set-up found.
pub(crate) fn chosen(data_dir: &DataDir, setting: Option<&str>) -> Result<Accelerator, AcceleratorError> {
    match parse(setting)? {
        Some(accelerator) => Ok(accelerator),
        None => Ok(found(data_dir)?.ok_or(AcceleratorError::NotProbed)?.accelerator),
    }
}

/// What set-up found; `None` if it never looked.
pub(crate) fn found(data_dir: &DataDir) -> Result<Option<Found>, AcceleratorError> {
    let path = data_dir.root().join(FILE);
    let error = |why: String| AcceleratorError::Record { path: path.display().to_string(), why };
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|why| error(why.to_string())),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(error(why.to_string())),
    }
}

/// Reads the setting; `None` is `auto`.
pub(crate) fn parse(setting: Option<&str>) -> Result<Option<Accelerator>, AcceleratorError> {
    match setting {
        None | Some("auto") => Ok(None),
        Some("kvm") => Ok(Some(Accelerator::Kvm)),
        Some("tcg") => Ok(Some(Accelerator::Tcg)),
        Some(other) => Err(AcceleratorError::Unknown(other.to_owned())),
    }
}

/// Finds out what executes guests here and writes it down. `kernel` is a guest kernel to try; blocks for some
/// seconds at most.
pub(crate) fn probe(
    data_dir: &DataDir,
    setting: Option<&str>,
    kernel: Option<&Path>,
) -> Result<Found, AcceleratorError> {
    let (accelerator, reason) = match parse(setting)? {
        Some(accelerator) => (accelerator, "it was asked for".to_owned()),
        None => match kvm(kernel) {
            Ok(reason) => (Accelerator::Kvm, reason),
            Err(reason) => (Accelerator::Tcg, reason),
        },
    };
    let found = Found { accelerator, reason, probed_at: jiff::Timestamp::now() };
    let path = data_dir.root().join(FILE);
    let aside = data_dir.root().join(format!("{FILE}.new"));
    let write = || {
        std::fs::write(&aside, serde_json::to_vec_pretty(&found)?)?;
        std::fs::rename(&aside, &path)
    };
    write()
        .map_err(|why| AcceleratorError::Record { path: path.display().to_string(), why: why.to_string() })?;
    Ok(found)
}

/// Whether KVM runs ordinary guests here, and why or why not.
fn kvm(kernel: Option<&Path>) -> Result<String, String> {
    let loaded: Vec<String> = std::fs::read_dir("/sys/module")
        .map(|modules| {
            modules.flatten().map(|module| module.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    let module = hardware_module(&loaded)?;
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(format!("{module} is loaded but /dev/kvm cannot be opened: {error}"));
    }
    let Some(kernel) = kernel else {
        return Ok(format!("{module} is loaded (no guest kernel was at hand to try it)"));
    };
    boot(kernel).map(|()| format!("{module} is loaded and a guest kernel booted"))
}

/// The module that drives the processor's virtualisation, among those that are loaded.
fn hardware_module(loaded: &[String]) -> Result<&'static str, String> {
    if let Some(module) =
        ["kvm_intel", "kvm_amd"].into_iter().find(|module| loaded.iter().any(|name| name == module))
    {
        return Ok(module);
    }
    let others: Vec<&str> =
        loaded.iter().filter(|name| name.starts_with("kvm")).map(String::as_str).collect();
    Err(match others.is_empty() {
        true => "this host has no KVM: neither kvm_intel nor kvm_amd is loaded".to_owned(),
        false => format!(
            "neither kvm_intel nor kvm_amd is loaded; this host's KVM ({}) has no hardware virtualisation under it",
            others.join(", ")
        ),
    })
}

/// Boots `kernel` without a root file system on KVM, and waits until it misses one.
fn boot(kernel: &Path) -> Result<(), String> {
    let mut child = Command::new(find(QEMU).ok_or("QEMU is not installed")?)
        .args(["-accel", "kvm", "-cpu", "host", "-machine", "microvm", "-m", "256", "-smp", "1"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("QEMU cannot be started: {error}"))?;
    let (sender, receiver) = mpsc::channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Both threads end with QEMU, at the latest when it is killed below.
    let console = std::thread::spawn(move || {
        for line in stdout.into_iter().flat_map(|out| BufReader::new(out).split(b'\n')).map_while(Result::ok)
        {
            let line = String::from_utf8_lossy(&line).into_owned();
            if MARKERS.iter().any(|marker| line.contains(marker)) {
                let _ = sender.send(());
            }
        }
    });
    let words = std::thread::spawn(move || {
        stderr.and_then(|err| std::io::read_to_string(err).ok()).unwrap_or_default()
    });
    let booted = receiver.recv_timeout(BOOT_LIMIT);
    let _ = child.kill();
    let _ = child.wait();
    let _ = console.join();
    let words = words.join().unwrap_or_default();
    match booted {
        Ok(()) => Ok(()),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(format!("a guest kernel on KVM got nowhere within {} s", BOOT_LIMIT.as_secs()))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(format!(
            "a guest kernel could not be run on KVM: {}",
            words.lines().last().unwrap_or("QEMU ended without a word")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_kvm_without_hardware_under_it_is_not_taken() {
        assert_eq!(hardware_module(&loaded(&["ext4", "kvm", "kvm_amd"])), Ok("kvm_amd"));
        let why = hardware_module(&loaded(&["kvm", "kvm_pvm"])).unwrap_err();
        assert!(why.contains("kvm_pvm") && why.contains("no hardware virtualisation"), "{why}");
        assert!(hardware_module(&loaded(&["ext4"])).unwrap_err().contains("no KVM"));
    }

    #[test]
    fn the_setting_beats_what_was_found_and_nothing_found_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::create(dir.path()).unwrap();
        assert!(matches!(chosen(&data_dir, None), Err(AcceleratorError::NotProbed)));
        probe(&data_dir, Some("tcg"), None).unwrap();
        assert_eq!(chosen(&data_dir, Some("auto")).unwrap(), Accelerator::Tcg);
        assert_eq!(chosen(&data_dir, Some("kvm")).unwrap(), Accelerator::Kvm);
        assert!(matches!(chosen(&data_dir, Some("xen")), Err(AcceleratorError::Unknown(_))));
    }
}

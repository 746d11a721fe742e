//! Figures of the kernel: what processes take of this host.

use std::path::{Path, PathBuf};

/// A figure cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {why}")]
pub(crate) struct HostError {
    path: PathBuf,
    why: String,
}

/// What a machine's record says of it.
pub(crate) struct MachineFound {
    /// Its process.
    pub(crate) pid: u32,
    /// The sandbox it carries; `None` if it is kept ready for one.
    pub(crate) sandbox: Option<String>,
}

/// The machines that a node has, by their records below `run_dir`.
pub(crate) fn machines(run_dir: &Path) -> Result<Vec<MachineFound>, HostError> {
    let path = run_dir.join("machines");
    let unreadable = |error: std::io::Error| HostError { path: path.clone(), why: error.to_string() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(unreadable)? {
        let record = entry.map_err(unreadable)?.path().join("record.json");
        // One that is being made or taken away has none.
        let Ok(text) = std::fs::read_to_string(&record) else { continue };
        let Ok(record) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
        let Some(pid) = record["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()) else { continue };
        found.push(MachineFound { pid, sandbox: record["note"]["sandbox"].as_str().map(str::to_owned) });
    }
    Ok(found)
}

/// The proportional set size of a process, in MiB: its own pages, and its share of pages that others map too.
pub(crate) fn pss_mib(pid: u32) -> Result<f64, HostError> {
    kib_line(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss:")
}

/// The memory of a process that no file is behind, in MiB: what it alone is to blame for.
pub(crate) fn anonymous_mib(pid: u32) -> Result<f64, HostError> {
    kib_line(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Anonymous:")
}

/// What this host could give to new processes, in MiB.
pub(crate) fn available_mib() -> Result<f64, HostError> {
    kib_line(Path::new("/proc/meminfo"), "MemAvailable:")
}

/// How many file systems are mounted here.
pub(crate) fn mounts() -> Result<usize, HostError> {
    read(Path::new("/proc/self/mountinfo")).map(|text| text.lines().count())
}

/// How many files a process has open.
pub(crate) fn open_files(pid: u32) -> Result<usize, HostError> {
    let path = PathBuf::from(format!("/proc/{pid}/fd"));
    let listed = std::fs::read_dir(&path).map(|entries| entries.count());
    listed.map_err(|error| HostError { path, why: error.to_string() })
}

fn read(path: &Path) -> Result<String, HostError> {
    std::fs::read_to_string(path).map_err(|error| HostError { path: path.to_owned(), why: error.to_string() })
}

/// The figure, given in KiB, behind `label` in a file of /proc; in MiB.
fn kib_line(path: &Path, label: &str) -> Result<f64, HostError> {
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<f64>().ok());
    let missing = || HostError { path: path.to_owned(), why: format!("it has no line '{label}'") };
    kib.map(|kib| kib / 1024.0).ok_or_else(missing)
}

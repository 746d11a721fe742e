//! What this binary carries inside: the guest's agent, and the library that is preloaded into QEMU.
//!
//! Both are taken out into `<data>/lib` under a name that holds a hash of their contents, so that binaries of
//! different versions never disturb each other, and a file that is there needs no second look.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The agent: a static program, first in the guest.
pub(crate) static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));
/// The library preloaded into QEMU.
static RAM_MAP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ram-map.so"));

/// Where the embedded files are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extracted {
    /// The agent.
    pub(crate) agent: PathBuf,
    /// The library preloaded into QEMU.
    pub(crate) ram_map: PathBuf,
}

/// BLAKE3 of the embedded agent, hexadecimal: what a template's record is compared with.
pub(crate) fn agent_blake3() -> String {
    blake3::hash(AGENT).to_hex().to_string()
}

/// Takes the embedded files out into `lib`, readable and executable for everybody (QEMU runs as users of their own).
/// Files of other versions stay while they may be in use; see [`remove_others`].
pub(crate) fn extract(lib: &Path) -> io::Result<Extracted> {
    fs::create_dir_all(lib)?;
    fs::set_permissions(lib, fs::Permissions::from_mode(0o755))?;
    Ok(Extracted {
        agent: extract_one(lib, &agent_name(), AGENT)?,
        ram_map: extract_one(lib, &ram_map_name(), RAM_MAP)?,
    })
}

/// Removes files of other versions from `lib`. For a server that is starting: machines that are already running keep
/// what they have open.
pub(crate) fn remove_others(lib: &Path) -> io::Result<()> {
    for entry in fs::read_dir(lib)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = name.starts_with("agent-") || name.starts_with("ram-map-");
        if ours && name != agent_name() && name != ram_map_name() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn agent_name() -> String {
    format!("agent-{}", &blake3::hash(AGENT).to_hex()[..16])
}

fn ram_map_name() -> String {
    format!("ram-map-{}.so", &blake3::hash(RAM_MAP).to_hex()[..16])
}

fn extract_one(lib: &Path, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let path = lib.join(name);
    if fs::read(&path).is_ok_and(|found| found == bytes) {
        return Ok(path);
    }
    // Written aside and renamed: nobody ever sees half a file, and a running one is not written over.
    let aside = lib.join(format!("{name}.{}", std::process::id()));
    let mut file = fs::File::create(&aside)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    fs::rename(&aside, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_is_whole_executable_and_repaired_when_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let first = extract(dir.path()).unwrap();
        assert_eq!(fs::read(&first.agent).unwrap(), AGENT);
        assert_eq!(fs::metadata(&first.ram_map).unwrap().permissions().mode() & 0o777, 0o755);
        fs::write(&first.ram_map, "half").unwrap();
        assert_eq!(extract(dir.path()).unwrap(), first);
        assert_eq!(fs::read(&first.ram_map).unwrap(), RAM_MAP);
    }

    #[test]
    fn files_of_other_versions_go_and_ours_stay() {
        let dir = tempfile::tempdir().unwrap();
        let ours = extract(dir.path()).unwrap();
        fs::write(dir.path().join("agent-0123456789abcdef"), "old").unwrap();
        fs::write(dir.path().join("someone-elses"), "kept").unwrap();
        remove_others(dir.path()).unwrap();
        assert!(ours.agent.exists() && ours.ram_map.exists());
        assert!(!dir.path().join("agent-0123456789abcdef").exists());
        assert!(dir.path().join("someone-elses").exists());
    }

    #[test]
    fn the_agent_is_linked_statically() {
        // A dynamically linked ELF file names its loader; the guest's first program has none at hand.
        let loader = b"/lib64/ld-linux";
        assert!(AGENT.starts_with(b"\x7fELF"));
        assert!(!AGENT.windows(loader.len()).any(|window| window == loader));
    }
}

//! The vault's layout has a version, in the file `VERSION`: `torpor-vault MAJOR.MINOR`.
//!
//! The rule for old readers and new data: a change that an older Torpor would misread or damage raises MAJOR, and an older Torpor refuses
//! such a vault; a change it may safely overlook (another file in a snapshot's directory, say) raises MINOR, and an older Torpor goes on. A newer
//! Torpor opens every older vault, and writes the new version only when it first writes something that needs it.

use std::io;
use std::path::{Path, PathBuf};

use crate::OpenError;
use crate::files::{sync_dir, write_durably};

const FILE: &str = "VERSION";
const NAME: &str = "torpor-vault";
const MAJOR: u32 = 1;
const MINOR: u32 = 0;

/// Checks the version of the vault in `dir`, which must have one.
pub(crate) fn check(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) if understood(&text) => Ok(()),
        Ok(text) => Err(unknown(path, &text)),
        Err(cause) => Err(OpenError::Io { what: "reading", path, cause }),
    }
}

/// Checks the version of the vault in `dir`; gives a new vault the present one.
pub(crate) fn check_or_write(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(FILE);
    let io = |what| {
        let path = path.clone();
        move |cause| OpenError::Io { what, path, cause }
    };
    match std::fs::read_to_string(&path) {
        Ok(text) if understood(&text) => Ok(()),
        Ok(text) => Err(unknown(path, &text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let aside = dir.join(format!("{FILE}.new"));
            match std::fs::remove_file(&aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("removing")(error)),
                _ => {}
            }
            let text = format!("{NAME} {MAJOR}.{MINOR}\n");
            write_durably(&aside, text.as_bytes()).map_err(io("writing"))?;
            std::fs::rename(&aside, &path).map_err(io("writing"))?;
            sync_dir(dir).map_err(io("flushing"))
        }
        Err(error) => Err(io("reading")(error)),
    }
}

fn unknown(path: PathBuf, text: &str) -> OpenError {
    let found = text.trim().chars().take(80).collect();
    OpenError::Version { found, known: format!("{NAME} {MAJOR}.x"), path }
}

fn understood(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let version = (words.next() == Some(NAME)).then(|| words.next()?.split_once('.')).flatten();
    version.is_some_and(|(major, minor)| major.parse() == Ok(MAJOR) && minor.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_minor_version_is_read_and_a_newer_major_one_refused() {
        assert!(understood("torpor-vault 1.0\n"));
        assert!(understood("torpor-vault 1.7\n"));
        for other in ["torpor-vault 2.0", "torpor-vault 1", "1.0", "", "torpor-vault 11.0"] {
            assert!(!understood(other), "{other}");
        }
    }

    #[test]
    fn a_new_vault_gets_a_version_and_a_foreign_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        check_or_write(dir.path()).unwrap();
        check_or_write(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "something else").unwrap();
        assert!(matches!(check_or_write(dir.path()), Err(OpenError::Version { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "something else");
    }
}

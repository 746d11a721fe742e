//! Which certificate authorities programs in the guest trust: the host may add one of its own.
//!
//! Distributions keep certificates in two ways, and programs read either: as one *bundle* file, and as a directory
//! in which OpenSSL finds a certificate by a link named after its subject. The certificate is also put where the
//! distribution's own tools look for additions (`update-ca-certificates`, `update-ca-trust`), so that it is
//! still there after they have written the bundle anew.
//!
//! Everything is replaced by a rename, and doing it again changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use torpor_envd_api::http::CA_LINK_NAME;

/// The host's certificate alone.
pub const CERTIFICATE: &str = "/usr/local/share/ca-certificates/torpor-egress.crt";
/// All certificates of the guest, where Debian, Alpine and Arch have them. It is made where it is missing.
pub const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Bundles of other distributions, extended where they exist.
const OTHER_BUNDLES: [&str; 4] = [
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Directories for additions in other distributions, used where they exist.
const OTHER_ADDITIONS: [&str; 2] = ["/etc/pki/ca-trust/source/anchors", "/etc/pki/trust/anchors"];

const BEGIN: &str = "# The sandbox host's own authority: begin";
const END: &str = "# The sandbox host's own authority: end";
const FILE_MODE: u32 = 0o644;

/// What the guest has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Whether [`BUNDLE`] has other authorities than the host's, and can stand in for a program's own list.
    pub bundle_is_complete: bool,
}

/// Makes programs in the guest trust the authority whose certificate is `pem`, instead of the one added before.
pub fn trust(pem: &str) -> io::Result<Trust> {
    trust_below(Path::new("/"), pem)
}

fn trust_below(root: &Path, pem: &str) -> io::Result<Trust> {
    let place = |path: &str| root.join(path.trim_start_matches('/'));
    let certificate = place(CERTIFICATE);
    for directory in [certificate.parent(), place(BUNDLE).parent()].into_iter().flatten() {
        fs::create_dir_all(directory)?;
    }
    replace(&certificate, pem)?;
    for directory in OTHER_ADDITIONS.map(place).into_iter().filter(|directory| directory.is_dir()) {
        replace(&directory.join("torpor-egress.crt"), pem)?;
    }
    let bundle = existing(&place(BUNDLE))?.unwrap_or_else(|| place(BUNDLE));
    // Several names of one file are common.
    let mut bundles = BTreeSet::from([bundle.clone()]);
    for other in OTHER_BUNDLES.map(place) {
        bundles.extend(existing(&other)?);
    }
    for path in &bundles {
        let old = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        replace(path, &with_authority(&old, pem))?;
    }
    link(&place("/etc/ssl/certs").join(CA_LINK_NAME))?;
    let bundle_is_complete =
        without_authority(&fs::read_to_string(bundle)?).contains("-----BEGIN CERTIFICATE");
    Ok(Trust { bundle_is_complete })
}

/// The file behind `path`, if there is one.
fn existing(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes `text` to `path` at once, or leaves it alone if it says so already.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let aside = path.with_extension("torpor-new");
    fs::write(&aside, text)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(FILE_MODE))?;
    fs::rename(aside, path)
}

fn link(path: &Path) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|target| target == Path::new(CERTIFICATE)) {
        return Ok(());
    }
    let aside = path.with_extension("torpor-new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(CERTIFICATE, &aside)?;
    fs::rename(aside, path)
}

fn with_authority(bundle: &str, pem: &str) -> String {
    let mut text = without_authority(bundle);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + BEGIN + "\n" + pem.trim_end() + "\n" + END + "\n"
}

fn without_authority(bundle: &str) -> String {
    match (bundle.find(BEGIN), bundle.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let rest = &bundle[end + END.len()..];
            bundle[..begin].to_owned() + rest.strip_prefix('\n').unwrap_or(rest)
        }
        _ => bundle.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "-----BEGIN CERTIFICATE-----\nold\n-----END CERTIFICATE-----\n";
    const ONE: &str = "-----BEGIN CERTIFICATE-----\none\n-----END CERTIFICATE-----\n";
    const TWO: &str = "-----BEGIN CERTIFICATE-----\ntwo\n-----END CERTIFICATE-----\n";

    fn read(root: &Path, path: &str) -> String {
        fs::read_to_string(root.join(path.trim_start_matches('/'))).unwrap()
    }

    #[test]
    fn a_guest_without_any_certificates_gets_the_first() {
        let root = tempfile::tempdir().unwrap();
        let trust = trust_below(root.path(), ONE).unwrap();
        assert!(!trust.bundle_is_complete);
        assert_eq!(read(root.path(), CERTIFICATE), ONE);
        assert_eq!(read(root.path(), BUNDLE), format!("{BEGIN}\n{ONE}{END}\n"));
        let link = fs::read_link(root.path().join("etc/ssl/certs").join(CA_LINK_NAME)).unwrap();
        assert_eq!(link, Path::new(CERTIFICATE));
    }

    #[test]
    fn another_hosts_authority_replaces_the_first_and_leaves_the_guests_own() {
        let root = tempfile::tempdir().unwrap();
        let pem = root.path().join("etc/pki/ca-trust/extracted/pem");
        fs::create_dir_all(&pem).unwrap();
        fs::create_dir_all(root.path().join("etc/ssl/certs")).unwrap();
        fs::create_dir_all(root.path().join("etc/pki/ca-trust/source/anchors")).unwrap();
        fs::write(root.path().join("etc/ssl/certs/ca-certificates.crt"), OLD).unwrap();
        fs::write(pem.join("tls-ca-bundle.pem"), OLD.trim_end()).unwrap();
        symlink("../pki/ca-trust/extracted/pem/tls-ca-bundle.pem", root.path().join("etc/ssl/cert.pem"))
            .unwrap();
        for pem in [ONE, ONE, TWO] {
            assert!(trust_below(root.path(), pem).unwrap().bundle_is_complete);
            let expected = format!("{OLD}{BEGIN}\n{pem}{END}\n");
            for bundle in [BUNDLE, OTHER_BUNDLES[1], "/etc/ssl/cert.pem"] {
                assert_eq!(read(root.path(), bundle), expected, "{bundle}");
            }
            assert_eq!(read(root.path(), "/etc/pki/ca-trust/source/anchors/torpor-egress.crt"), pem);
        }
        assert!(root.path().join("etc/ssl/cert.pem").is_symlink(), "a link stays one");
        let leftovers = fs::read_dir(root.path().join("etc/ssl/certs")).unwrap().count();
        assert_eq!(leftovers, 2);
    }

    #[test]
    fn what_stands_behind_the_authority_stays() {
        let bundle = format!("{OLD}{BEGIN}\n{ONE}{END}\n{TWO}");
        assert_eq!(without_authority(&bundle), format!("{OLD}{TWO}"));
        assert_eq!(with_authority(&with_authority(&bundle, ONE), ONE), with_authority(&bundle, ONE));
    }
}

//! From where Debian packages come: the host's own mirror and proxy where they serve, else Debian's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::{command, run};

/// The mirror that always serves.
pub const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// Where Debian's security updates are.
pub const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// Where to get a suite from, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Base address of the archive.
    pub mirror: String,
    /// apt options in the form `Acquire::http::Proxy "http://…";`, taken over from the host.
    pub apt_options: Vec<String>,
    /// Keyring of Debian's archive on this host.
    pub keyring: Option<PathBuf>,
}

// === impl Source ===

impl Source {
    /// Chooses for `suite`: `mirror` if given, else the first mirror in the host's own apt sources that has the suite,
    /// else [`DEFAULT_MIRROR`].
    pub fn choose(suite: &str, mirror: Option<&str>) -> Self {
        let apt_options = host_apt_options();
        let mirror = match mirror {
            Some(mirror) => mirror.trim_end_matches('/').to_owned(),
            None => host_mirrors()
                .into_iter()
                .find(|mirror| mirror == DEFAULT_MIRROR || has_suite(mirror, suite))
                .unwrap_or_else(|| DEFAULT_MIRROR.to_owned()),
        };
        let keyring = [
            "/usr/share/keyrings/debian-archive-keyring.gpg",
            "/usr/share/keyrings/debian-archive-keyring.pgp",
        ]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists());
        Self { mirror, apt_options, keyring }
    }

    /// The lines of a `sources.list` for `suite` with its updates.
    pub fn lines(&self, suite: &str) -> Vec<String> {
        let signed_by =
            self.keyring.as_ref().map(|path| format!("[signed-by={}] ", path.display())).unwrap_or_default();
        vec![
            format!("deb {signed_by}{} {suite} main", self.mirror),
            format!("deb {signed_by}{} {suite}-updates main", self.mirror),
            format!("deb {signed_by}{SECURITY_MIRROR} {suite}-security main"),
        ]
    }
}

/// What of the host's apt configuration concerns the way to a mirror: proxies and time limits.
fn host_apt_options() -> Vec<String> {
    match run(command("apt-config").arg("dump").arg("Acquire")) {
        Ok(output) => transport_options(&String::from_utf8_lossy(&output.stdout)),
        Err(_) => Vec::new(),
    }
}

fn transport_options(dump: &str) -> Vec<String> {
    dump.lines()
        .filter(|line| {
            let line = line.to_ascii_lowercase();
            ["acquire::http::", "acquire::https::", "acquire::retries"]
                .iter()
                .any(|start| line.starts_with(start))
                && !line.contains("auto-detect")
                && !line.ends_with("\"\";")
        })
        .map(str::to_owned)
        .collect()
}

/// Whether `mirror` answers for `suite`, asked through the host's own apt so that its proxies apply.
fn has_suite(mirror: &str, suite: &str) -> bool {
    if !(mirror.starts_with("http://") || mirror.starts_with("https://")) {
        return false;
    }
    let release = format!("{mirror}/dists/{suite}/InRelease");
    run(command("/usr/lib/apt/apt-helper").args(["download-file", &release, "/dev/null"])).is_ok()
}

/// Mirrors of Debian's main archive in the host's apt sources, in their order.
fn host_mirrors() -> Vec<String> {
    let mut texts = Vec::new();
    let list = Path::new("/etc/apt/sources.list");
    let mut files = vec![list.to_owned()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    for file in files {
        if let Ok(text) = fs::read_to_string(&file) {
            texts.push((file.extension().is_some_and(|extension| extension == "sources"), text));
        }
    }
    let mut mirrors: Vec<String> = Vec::new();
    for (deb822, text) in texts {
        let found = if deb822 { mirrors_deb822(&text) } else { mirrors_one_line(&text) };
        for mirror in found {
            if !mirrors.contains(&mirror) {
                mirrors.push(mirror);
            }
        }
    }
    mirrors
}

/// The suites of Debian that a host may follow; entries for others (Ubuntu's, vendors') are no Debian mirror.
const DEBIAN_SUITES: [&str; 8] =
    ["bullseye", "bookworm", "trixie", "forky", "oldstable", "stable", "testing", "sid"];

fn is_debian_main(uri: &str, suites: &[&str], components: &[&str]) -> bool {
    !uri.contains("security")
        && suites.iter().any(|suite| DEBIAN_SUITES.contains(suite))
        && components.contains(&"main")
}

/// The format of `sources.list`: `deb [options] uri suite component…`.
fn mirrors_one_line(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
            let line = match line.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?.1,
                None => line,
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            let (uri, suite) = (words.first()?, words.get(1)?);
            is_debian_main(uri, &[suite], &words[2..]).then(|| uri.trim_end_matches('/').to_owned())
        })
        .collect()
}

/// The format of `*.sources`: stanzas of `Key: value`, continued by lines that begin with a space.
fn mirrors_deb822(text: &str) -> Vec<String> {
    let text: String =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let mut mirrors = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| -> Vec<String> {
            let mut words = Vec::new();
            let mut inside = false;
            for line in stanza.lines() {
                if line.starts_with([' ', '\t']) {
                    if inside {
                        words.extend(line.split_whitespace().map(str::to_owned));
                    }
                } else if let Some((key, value)) = line.split_once(':') {
                    inside = key.eq_ignore_ascii_case(name);
                    if inside {
                        words.extend(value.split_whitespace().map(str::to_owned));
                    }
                }
            }
            words
        };
        let (suites, components) = (field("Suites"), field("Components"));
        let suites: Vec<&str> = suites.iter().map(String::as_str).collect();
        let components: Vec<&str> = components.iter().map(String::as_str).collect();
        let enabled = !field("Enabled").iter().any(|word| word == "no");
        if enabled && field("Types").iter().any(|kind| kind == "deb") {
            mirrors.extend(
                field("URIs")
                    .into_iter()
                    .filter(|uri| is_debian_main(uri, &suites, &components))
                    .map(|uri| uri.trim_end_matches('/').to_owned()),
            );
        }
    }
    mirrors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debian_hosts_own_mirror_is_found_in_either_format() {
        let one_line = "# deb http://old/debian bookworm main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian/ bookworm main contrib\n\
            deb http://security.debian.org/debian-security bookworm-security main\n\
            deb https://vendor.example/apt cloud main\n";
        assert_eq!(mirrors_one_line(one_line), ["http://mirror.example/debian"]);
        let deb822 = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm\n bookworm-updates\n\
            Components: main\n\nTypes: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\n\
            Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n";
        assert_eq!(mirrors_deb822(deb822), ["http://mirror.example/debian"]);
    }

    #[test]
    fn an_ubuntu_mirror_is_not_taken_for_a_debian_mirror() {
        assert!(mirrors_one_line("deb http://archive.ubuntu.com/ubuntu noble main universe\n").is_empty());
    }

    #[test]
    fn the_hosts_proxy_is_used_and_nothing_else_of_its_configuration() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://p:3142\";\nAcquire::https \"\";\nAcquire::https::Proxy \"DIRECT\";\n\
            Acquire::cdrom \"\";\nAcquire::Languages \"en\";\nAcquire::Retries \"3\";\n";
        assert_eq!(
            transport_options(dump),
            [
                "Acquire::http::Proxy \"http://p:3142\";",
                "Acquire::https::Proxy \"DIRECT\";",
                "Acquire::Retries \"3\";"
            ]
        );
    }
}

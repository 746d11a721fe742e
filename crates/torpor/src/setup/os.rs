//! Which Linux distribution this is: `/etc/os-release`.

use std::fs;

/// A Linux distribution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Os {
    /// Its id, for instance `debian`.
    pub(crate) id: String,
    /// The ids it is like, nearest first.
    pub(crate) like: Vec<String>,
    /// The code name of its release; for a derivative of Ubuntu, that of the Ubuntu release.
    pub(crate) codename: String,
    /// The name for people.
    pub(crate) name: String,
}

// === impl Os ===

impl Os {
    /// This host's.
    pub(crate) fn read() -> Self {
        let text =
            fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
        Self::parse(&text.unwrap_or_default())
    }

    /// Reads the text of an `os-release` file.
    pub(crate) fn parse(text: &str) -> Self {
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().trim_matches(['"', '\'']).to_owned())
                .unwrap_or_default()
        };
        let codename = match field("UBUNTU_CODENAME") {
            name if name.is_empty() => field("VERSION_CODENAME"),
            name => name,
        };
        Self {
            id: field("ID"),
            like: field("ID_LIKE").split_whitespace().map(str::to_owned).collect(),
            codename,
            name: field("PRETTY_NAME"),
        }
    }

    /// Whether it is `id` or derived from it.
    pub(crate) fn is(&self, id: &str) -> bool {
        self.id == id || self.like.iter().any(|like| like == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derivative_is_known_by_what_it_is_like() {
        let mint = Os::parse(
            "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_CODENAME=zara\nUBUNTU_CODENAME=noble\n",
        );
        assert!(mint.is("ubuntu") && mint.is("debian") && mint.is("linuxmint") && !mint.is("fedora"));
        assert_eq!(mint.codename, "noble");
    }
}

//! What is in a root file system.

use serde::Serialize;

/// What is in a root file system: everything that, changed, makes another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recipe {
    /// Debian suite, for instance `trixie`.
    pub suite: String,
    /// Debian packages to install, without their recommendations. One of them must be a kernel.
    pub packages: Vec<String>,
    /// Shell script run on the host with the finished tree's root as its argument.
    pub customize: String,
    /// Paths in packages that are not unpacked.
    pub exclude: Vec<String>,
    /// Paths that are unpacked although `exclude` covers them.
    pub include: Vec<String>,
    /// Apparent size of the image in MiB.
    pub disk_mib: u32,
    /// Raised when this crate makes another image from the same recipe.
    revision: u32,
}

/// Raise when the way a recipe becomes an image changes.
const REVISION: u32 = 1;

// === impl Recipe ===

impl Recipe {
    /// The recipe of the `base` template: Debian trixie with Python, Node.js and a compiler.
    pub fn base() -> Self {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Self {
            suite: "trixie".to_owned(),
            packages: parse_packages(include_str!("../recipes/base/packages.txt")),
            customize: include_str!("../recipes/base/customize.sh").to_owned(),
            exclude: own(&[
                "/usr/share/man/*",
                "/usr/share/doc/*",
                "/usr/share/info/*",
                "/usr/share/locale/*",
                "/usr/share/lintian/*",
            ]),
            include: own(&["/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias"]),
            disk_mib: 8192,
            revision: REVISION,
        }
    }

    /// The name of the rootfs this recipe makes: 16 hexadecimal digits of a hash over everything in it.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        // A struct of texts and numbers always serialises; a failure would only make the hash differ.
        if let Ok(json) = serde_json::to_vec(self) {
            hasher.update(&json);
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }
}

fn parse_packages(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_recipe_holds_what_its_users_rely_on() {
        let recipe = Recipe::base();
        for package in
            ["linux-image-cloud-amd64", "python3-venv", "python3-pip", "nodejs", "npm", "git", "curl", "sudo"]
        {
            assert!(recipe.packages.iter().any(|p| p == package), "{package}");
        }
        assert!(recipe.packages.iter().all(|p| !p.contains(char::is_whitespace) && !p.contains(',')));
    }

    #[test]
    fn any_change_of_a_recipe_gives_it_another_hash() {
        let base = Recipe::base();
        let mut more = base.clone();
        more.packages.push("vim".to_owned());
        let mut script = base.clone();
        script.customize.push('\n');
        let mut larger = base.clone();
        larger.disk_mib += 1;
        let hashes: std::collections::HashSet<_> =
            [&base, &more, &script, &larger].into_iter().map(Recipe::hash).collect();
        assert_eq!(hashes.len(), 4);
        assert_eq!(base.hash(), Recipe::base().hash());
        assert_eq!(base.hash().len(), 16);
    }
}

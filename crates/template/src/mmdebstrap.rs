//! Runs mmdebstrap and makes a percentage of what it prints.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::command::{CommandError, command, run_lines};
use crate::mirror::Source;
use crate::progress::Progress;
use crate::recipe::Recipe;

/// Builds the tree of `recipe` at `tree`, which must not exist. Everything printed goes to `log`.
pub(crate) fn build(
    recipe: &Recipe,
    source: &Source,
    hook: &Path,
    tree: &Path,
    log: &mut File,
    progress: &dyn Progress,
) -> Result<(), CommandError> {
    // A pid namespace whose first process dies with this thread: however the build ends, none of its processes and
    // none of its mounts outlives it.
    let mut mmdebstrap = command("setpriv");
    mmdebstrap.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    mmdebstrap.arg("mmdebstrap").args(arguments(recipe, source));
    mmdebstrap.arg(format!("--customize-hook={}", hook.display()));
    mmdebstrap.arg(&recipe.suite).arg(tree).args(source.lines(&recipe.suite));
    mmdebstrap.env("DEBIAN_FRONTEND", "noninteractive").env("HOME", "/root").env_remove("TMPDIR");
    // Debian's kernel packages make no initramfs when told so; machines boot Torpor's own.
    mmdebstrap.env("INITRD", "No");
    progress.step("installing packages");
    let mut parser = Parser::default();
    run_lines(&mut mmdebstrap, |line| {
        let _ = writeln!(log, "{line}");
        if let Some(done) = parser.line(line) {
            progress.fraction(done);
        }
    })
}

fn arguments(recipe: &Recipe, source: &Source) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--mode=root", "--variant=apt", "--format=directory", "--verbose", "--architectures=amd64"]
            .map(str::to_owned)
            .into();
    arguments.push(format!("--include={}", recipe.packages.join(",")));
    arguments.push("--aptopt=APT::Install-Recommends \"false\"".to_owned());
    arguments.push("--aptopt=Acquire::Languages \"none\"".to_owned());
    arguments.extend(source.apt_options.iter().map(|option| format!("--aptopt={option}")));
    arguments.extend(recipe.exclude.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    arguments.extend(recipe.include.iter().map(|path| format!("--dpkgopt=path-include={path}")));
    arguments.push("--dpkgopt=force-unsafe-io".to_owned());
    arguments
}

/// Follows the output: two rounds (the essential packages, then the rest) in which packages are downloaded, unpacked and set up.
#[derive(Debug, Default)]
struct Parser {
    round: usize,
    packages: f64,
    downloaded: f64,
    unpacked: f64,
    set_up: f64,
    done: f64,
}

/// Share of the whole time that each round takes, measured.
const ROUNDS: [f64; 2] = [0.2, 0.78];

// === impl Parser ===

impl Parser {
    /// The share of the whole that is done after `line`; `None` if the line says nothing about it.
    fn line(&mut self, line: &str) -> Option<f64> {
        if line.starts_with("I: installing remaining packages") {
            *self = Self { round: 1, done: self.done, ..Self::default() };
        } else if let Some(packages) = newly_installed(line) {
            self.packages = packages;
        } else if line.starts_with("Get:") {
            self.downloaded += 1.0;
        } else if line.starts_with("Unpacking ") {
            self.unpacked += 1.0;
        } else if line.starts_with("Setting up ") {
            self.set_up += 1.0;
        } else {
            return None;
        }
        if self.packages > 0.0 {
            let part = |count: f64| (count / self.packages).min(1.0);
            let round = 0.2 * part(self.downloaded) + 0.5 * part(self.unpacked) + 0.3 * part(self.set_up);
            let before: f64 = ROUNDS[..self.round].iter().sum();
            self.done = self.done.max(before + ROUNDS[self.round] * round);
        }
        Some(self.done)
    }
}

/// `0 upgraded, 118 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<f64> {
    line.split(", ").find_map(|part| part.strip_suffix(" newly installed"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn progress_follows_packages_through_both_rounds() {
        let mut parser = Parser::default();
        let mut fractions = Vec::new();
        for (head, count) in [("", 2), ("I: installing remaining packages inside the chroot...", 4)] {
            let mut lines = vec![
                head.to_owned(),
                format!("0 upgraded, {count} newly installed, 0 to remove and 0 not upgraded."),
            ];
            for what in ["Get:1 http://m", "Unpacking p", "Setting up p"] {
                lines.extend(std::iter::repeat_n(what.to_owned(), count));
            }
            fractions.extend(lines.iter().filter_map(|line| parser.line(line)));
        }
        assert!(fractions.is_sorted(), "{fractions:?}");
        assert!(fractions.last().is_some_and(|last| *last > 0.97 && *last <= 1.0), "{fractions:?}");
    }

    proptest! {
        #[test]
        fn progress_never_goes_back_or_beyond_the_end(
            lines in prop::collection::vec(
                prop_oneof![
                    Just("I: installing remaining packages inside the chroot...".to_owned()),
                    (0..500_u32).prop_map(|n| format!("0 upgraded, {n} newly installed, 0 to remove")),
                    Just("Get:3 http://x".to_owned()), Just("Unpacking x".to_owned()), Just("Setting up x".to_owned()),
                    "\\PC{0,20}",
                ],
                0..200,
            )
        ) {
            let mut parser = Parser::default();
            let done: Vec<f64> = lines.iter().filter_map(|line| parser.line(line)).collect();
            prop_assert!(done.is_sorted());
            prop_assert!(done.iter().all(|done| (0.0..=1.0).contains(done)));
        }
    }

    #[test]
    fn the_hosts_proxy_and_the_excluded_paths_reach_mmdebstrap() {
        let source = Source {
            mirror: "http://m/debian".to_owned(),
            apt_options: vec!["Acquire::http::Proxy \"http://p\";".to_owned()],
            keyring: None,
        };
        let arguments = arguments(&Recipe::base(), &source);
        assert!(arguments.contains(&"--aptopt=Acquire::http::Proxy \"http://p\";".to_owned()));
        assert!(arguments.contains(&"--dpkgopt=path-exclude=/usr/share/man/*".to_owned()));
    }
}

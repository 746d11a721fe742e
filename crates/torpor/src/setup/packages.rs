//! Which packages a host lacks, and how it gets them.
//!
//! What to do is decided by [`plan`], a pure function of the distribution and of what is missing; [`Plan::Apt`] can be
//! carried out here, everything else is for the user to do and is said in so many words.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::os::Os;
use super::programs::{Needed, QEMU, QEMU_GOOD, QEMU_LEAST, QemuVersion};
use crate::progress::Step;

/// What to do about packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// All that is needed is there.
    Nothing,
    /// apt installs it.
    Apt(Apt),
    /// The user has to do it; the text says how.
    ByHand(String),
}

/// An installation by apt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Apt {
    /// Packages from the release itself.
    pub(crate) packages: Vec<String>,
    /// Packages from backports, and the suite that holds them.
    pub(crate) backports: Option<Backports>,
}

/// Packages from a release's backports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backports {
    /// The suite, for instance `bookworm-backports`.
    pub(crate) suite: String,
    /// The packages.
    pub(crate) packages: Vec<String>,
}

/// Packages could not be installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// apt failed.
    #[error("'{command}' failed; it said:\n{tail}")]
    Apt {
        /// The command line.
        command: String,
        /// The last lines it printed.
        tail: String,
    },
    /// A file or program could not be used.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Releases whose own QEMU is too old, whatever is done.
const QEMU_TOO_OLD: [(&str, &str); 4] =
    [("buster", "3.1"), ("bullseye", "5.2"), ("focal", "4.2"), ("jammy", "6.2")];

/// What to do on `os` to get `missing`, with QEMU in version `qemu`.
pub(crate) fn plan(os: &Os, missing: &[Needed], qemu: Option<QemuVersion>) -> Plan {
    let qemu_missing = missing.iter().any(|needed| needed.name == QEMU);
    let too_old = qemu.is_some_and(|version| version < QEMU_LEAST);
    let debian_12 = os.is("debian") && os.codename == "bookworm";
    // Where a good QEMU is one package away, a poor one is replaced.
    let want_qemu = qemu_missing || too_old || (debian_12 && qemu.is_some_and(|version| version < QEMU_GOOD));
    if missing.is_empty() && !want_qemu {
        return Plan::Nothing;
    }
    if !os.is("debian") && !os.is("ubuntu") {
        return Plan::ByHand(by_hand(os, missing, qemu.filter(|_| too_old)));
    }
    if let Some((_, version)) =
        QEMU_TOO_OLD.iter().find(|(codename, _)| want_qemu && os.codename == *codename)
    {
        return Plan::ByHand(format!(
            "{} has QEMU {version}, and Torpor needs {QEMU_LEAST} ({QEMU_GOOD} is better by far). Use Debian 12 or \
             13 or Ubuntu 24.04 or newer, or install a newer QEMU yourself so that `{QEMU}` is in the search path.",
            os.name
        ));
    }
    let mut packages: Vec<String> = Vec::new();
    for needed in missing.iter().filter(|needed| needed.name != QEMU) {
        if !packages.iter().any(|package| package == needed.debian) {
            packages.push(needed.debian.to_owned());
        }
    }
    let mut backports = None;
    if want_qemu {
        let qemu = "qemu-system-x86".to_owned();
        match debian_12 {
            true => {
                backports = Some(Backports { suite: "bookworm-backports".to_owned(), packages: vec![qemu] });
            }
            false => packages.insert(0, qemu),
        }
    }
    Plan::Apt(Apt { packages, backports })
}

/// The package of a program on one distribution.
type PackageOf = fn(&Needed) -> &'static str;

/// What a user of another distribution has to install.
fn by_hand(os: &Os, missing: &[Needed], too_old: Option<QemuVersion>) -> String {
    let package = [
        ("fedora", "dnf install", (|needed| needed.fedora) as PackageOf),
        ("rhel", "dnf install", |needed| needed.fedora),
        ("arch", "pacman -S", |needed| needed.arch),
        ("alpine", "apk add", |needed| needed.alpine),
    ]
    .into_iter()
    .find(|(id, _, _)| os.is(id))
    .map(|(_, command, package)| (command, package));
    let name = if os.name.is_empty() { "this distribution" } else { &os.name };
    let mut text = format!("Torpor installs packages on Debian and Ubuntu only; {name} is neither.");
    if !missing.is_empty() {
        text.push_str(" These are missing:\n");
    }
    let mut packages: Vec<&str> = Vec::new();
    for needed in missing {
        let usual = package.map_or(needed.debian, |(_, package)| package(needed));
        text.push_str(&format!("  {:<20} {} (usually in {usual})\n", needed.name, needed.purpose));
        if !packages.contains(&usual) {
            packages.push(usual);
        }
    }
    if let Some(version) = too_old {
        text.push_str(&format!("QEMU {version} is too old: {QEMU_LEAST} is the least that works.\n"));
    }
    match package {
        Some((command, _)) if !packages.is_empty() => {
            text.push_str(&format!("Try: {command} {}", packages.join(" ")))
        }
        _ => text.push_str("Install them so that they are in the search path, then run this again."),
    }
    text
}

// === impl Apt ===

impl Apt {
    /// The command lines this comes to, as a user would type them.
    pub(crate) fn command_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(backports) = &self.backports {
            lines.push(format!("apt-get install -t {} {}", backports.suite, backports.packages.join(" ")));
        }
        if !self.packages.is_empty() {
            lines.push(format!("apt-get install {}", self.packages.join(" ")));
        }
        lines
    }

    /// Installs. Safe to interrupt and to repeat: dpkg is told to finish what it left half done.
    pub(crate) fn install(&self, step: &Step) -> Result<(), InstallError> {
        if let Some(backports) = &self.backports {
            enable_backports(&backports.suite)?;
        }
        step.doing("finishing interrupted installations");
        run(Command::new("dpkg").args(["--configure", "-a"]), step)?;
        step.doing("reading package lists");
        run(Command::new("apt-get").args(["-y", "update"]), step)?;
        step.doing("installing packages");
        if let Some(backports) = &self.backports {
            run(&mut install(&["-t", &backports.suite], &backports.packages), step)?;
        }
        if !self.packages.is_empty() {
            run(&mut install(&[], &self.packages), step)?;
        }
        Ok(())
    }
}

fn install(options: &[&str], packages: &[String]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-y", "--no-install-recommends", "-o", "APT::Status-Fd=1", "-o", "Dpkg::Use-Pty=0"]);
    command.args(["-o", "DPkg::Lock::Timeout=300", "install"]).args(options).args(packages);
    command
}

/// Adds the suite to apt's sources in a file of Torpor's own, unless the host has it already.
fn enable_backports(suite: &str) -> Result<(), InstallError> {
    let policy = Command::new("apt-cache").arg("policy").output();
    if policy.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&format!("n={suite}"))) {
        return Ok(());
    }
    let path = format!("/etc/apt/sources.list.d/torpor-{suite}.sources");
    let text = format!(
        "# Added by `torpor setup` for a QEMU that emulates well.\nTypes: deb\nURIs: http://deb.debian.org/debian\n\
         Suites: {suite}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    std::fs::write(&path, text).map_err(|source| InstallError::Io { what: format!("write {path}"), source })
}

fn run(command: &mut Command, step: &Step) -> Result<(), InstallError> {
    let shown = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let io = |source| InstallError::Io { what: format!("run '{shown}'"), source };
    let (reader, writer) = io::pipe().map_err(io)?;
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command.stdout(writer.try_clone().map_err(io)?).stderr(writer);
    let mut child = command.spawn().map_err(io)?;
    // The command holds the writing end of the pipe; the reader waits for all of them to close.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail: Vec<String> = Vec::new();
    for line in BufReader::new(reader).lines() {
        let line = line.map_err(io)?;
        match percent(&line) {
            Some(percent) => step.done(percent / 100.0),
            None if line.trim().is_empty() => {}
            None => tail.push(line),
        }
        if tail.len() > 15 {
            tail.remove(0);
        }
    }
    match child.wait().map_err(io)?.success() {
        true => Ok(()),
        false => Err(InstallError::Apt { command: shown, tail: tail.join("\n") }),
    }
}

/// The percentage in a line of apt's status: `pmstatus:nftables:42.8571:Unpacking nftables (amd64)`.
fn percent(line: &str) -> Option<f64> {
    let mut fields = line.split(':');
    let base = match fields.next()? {
        "dlstatus" => 0.0,
        "pmstatus" => 40.0,
        _ => return None,
    };
    // A package's name may hold a colon (libc6:amd64): the percentage is the first field that is a number with a point.
    let percent: f64 =
        fields.skip(1).find_map(|field| field.contains('.').then(|| field.parse().ok()).flatten())?;
    Some(base + percent * if base == 0.0 { 0.4 } else { 0.6 })
}

/// Asks whether to install; without a terminal to ask on, the answer is no.
pub(crate) fn ask(plan: &Apt) -> bool {
    use std::io::IsTerminal;
    if !io::stdin().is_terminal() {
        return false;
    }
    eprintln!("These packages are missing:");
    for line in plan.command_lines() {
        eprintln!("    {line}");
    }
    eprint!("Install them now? [Y/n] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok_and(|bytes| bytes > 0)
        && matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes")
}

#[cfg(test)]
#[path = "packages_tests.rs"]
mod tests;

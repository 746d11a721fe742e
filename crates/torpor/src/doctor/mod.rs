//! `torpor doctor`: looks at everything a node stands on, changes nothing, and says what to do.
//!
//! A check that is not all right has a code (`T0005`) that never changes its meaning; `docs/errors.md` has a paragraph
//! for each.

mod checks;
mod report;

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::settings::Settings;

/// How `torpor doctor` answers.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DoctorOptions {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Sandboxes run, with less than they could have.
    Warn,
    /// Sandboxes cannot run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How it went.
    pub(crate) status: Status,
    /// Its code, if it is not all right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<Code>,
    /// What was found.
    pub(crate) why: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) todo: Option<String>,
}

/// A stable code: its number never means anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u16);

/// Every code there is; `docs/errors.md` has a section for each (a test compares).
pub(crate) mod code {
    use super::Code;

    pub(crate) const NOT_ROOT: Code = Code(1);
    pub(crate) const PROGRAM_MISSING: Code = Code(2);
    pub(crate) const QEMU_OLD: Code = Code(3);
    pub(crate) const KERNEL: Code = Code(4);
    pub(crate) const NETWORK: Code = Code(5);
    pub(crate) const DATA_DIR: Code = Code(6);
    pub(crate) const CANNOT_CLONE: Code = Code(7);
    pub(crate) const VAULT_FULL: Code = Code(8);
    pub(crate) const NO_TEMPLATE: Code = Code(9);
    pub(crate) const TEMPLATE_UNFIT: Code = Code(10);
    pub(crate) const EMULATION: Code = Code(11);
    pub(crate) const NO_INTERNET: Code = Code(12);
    pub(crate) const NO_CGROUPS: Code = Code(13);
    pub(crate) const NOT_SET_UP: Code = Code(14);
    pub(crate) const SETTINGS: Code = Code(15);
    pub(crate) const ARCHITECTURE: Code = Code(16);

    #[cfg(test)]
    pub(crate) const ALL: [Code; 16] = [
        NOT_ROOT,
        PROGRAM_MISSING,
        QEMU_OLD,
        KERNEL,
        NETWORK,
        DATA_DIR,
        CANNOT_CLONE,
        VAULT_FULL,
        NO_TEMPLATE,
        TEMPLATE_UNFIT,
        EMULATION,
        NO_INTERNET,
        NO_CGROUPS,
        NOT_SET_UP,
        SETTINGS,
        ARCHITECTURE,
    ];
}

/// Looks, prints on standard output, and fails if any check failed.
pub(crate) async fn run(data_dir: &Path, options: &DoctorOptions, settings: &Settings) -> ExitCode {
    let (data_dir, settings) = (data_dir.to_owned(), settings.clone());
    let looking = tokio::task::spawn_blocking(move || checks::all(&data_dir, &settings));
    let checks = match looking.await {
        Ok(checks) => checks,
        Err(error) => {
            eprintln!("torpor doctor ended early: {error}");
            return ExitCode::FAILURE;
        }
    };
    match options.json {
        true => println!("{}", report::json(&checks)),
        false => print!("{}", report::table(&checks)),
    }
    match checks.iter().any(|check| check.status == Status::Fail) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

// === impl Code ===

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "T{:04}", self.0)
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl Check ===

impl Check {
    /// All right.
    pub(crate) fn ok(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, code: None, why: why.into(), todo: None }
    }

    /// Not quite right.
    pub(crate) fn warn(
        name: &'static str,
        code: Code,
        why: impl Into<String>,
        todo: impl Into<String>,
    ) -> Self {
        Self { name, status: Status::Warn, code: Some(code), why: why.into(), todo: Some(todo.into()) }
    }

    /// Wrong.
    pub(crate) fn fail(
        name: &'static str,
        code: Code,
        why: impl Into<String>,
        todo: impl Into<String>,
    ) -> Self {
        Self { name, status: Status::Fail, code: Some(code), why: why.into(), todo: Some(todo.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_paragraph_of_advice_and_no_paragraph_lacks_a_code() {
        let page = include_str!("../../../../docs/errors.md");
        let sections: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("## ")?.split_whitespace().next()).collect();
        let codes: Vec<String> = code::ALL.iter().map(Code::to_string).collect();
        assert_eq!(sections, codes);
    }
}

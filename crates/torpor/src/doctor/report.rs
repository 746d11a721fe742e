//! How the checks are printed.

use super::{Check, Status};

/// Columns before the text of a check.
const INDENT: usize = 28;
/// Columns of the whole.
const WIDTH: usize = 110;

/// For people: a line for each check, what to do below it, a sum at the end.
pub(super) fn table(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        let mut lines = wrap(&check.why).into_iter();
        text.push_str(&format!("  {mark:<5} {:<19} {}\n", check.name, lines.next().unwrap_or_default()));
        for line in lines {
            text.push_str(&format!("{:INDENT$}{line}\n", ""));
        }
        if let Some(todo) = &check.todo {
            let code = check.code.map(|code| format!("{code}: ")).unwrap_or_default();
            for line in wrap(&format!("{code}{todo}")) {
                text.push_str(&format!("{:INDENT$}{line}\n", ""));
            }
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (fail, warn) = (count(Status::Fail), count(Status::Warn));
    text.push_str(&match (fail, warn) {
        (0, 0) => "\nEverything is as it should be.\n".to_owned(),
        (0, warn) => format!("\nSandboxes can run. {warn} to look at; docs/errors.md explains the codes.\n"),
        (fail, warn) => format!(
            "\nSandboxes cannot run: {fail} failed, {warn} to look at. docs/errors.md explains the codes.\n"
        ),
    });
    text
}

/// For programs: an array of checks.
pub(super) fn json(checks: &[Check]) -> String {
    // Texts and names always serialise.
    serde_json::to_string_pretty(checks).unwrap_or_default()
}

/// Breaks `text` at spaces into lines that fit.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        // There is always a last line.
        let fits = lines.last().is_some_and(|line| {
            line.is_empty() || line.chars().count() + 1 + word.chars().count() <= WIDTH - INDENT
        });
        if !fits {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::code;
    use super::*;

    fn checks() -> Vec<Check> {
        vec![
            Check::ok("root", "running as root"),
            Check::warn(
                "accelerator",
                code::EMULATION,
                "software emulation, because neither kvm_intel nor kvm_amd is loaded; guests run at a tenth of native speed",
                "Use a host with hardware virtualisation, or load its module with `modprobe kvm_intel` or `modprobe kvm_amd`, then run `torpor setup` again.",
            ),
            Check::fail("vault", code::CANNOT_CLONE, "ext4 cannot clone files", "Run `torpor setup`."),
        ]
    }

    #[test]
    fn the_table_says_what_was_found_and_what_to_do() {
        insta::assert_snapshot!(table(&checks()));
    }

    #[test]
    fn the_json_holds_the_same() {
        insta::assert_snapshot!(json(&checks()));
    }

    #[test]
    fn a_host_without_faults_gets_one_good_word() {
        assert!(table(&checks()[..1]).ends_with("Everything is as it should be.\n"));
    }
}

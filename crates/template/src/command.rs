//! Runs a host program and says, when it fails, what it said.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, ExitStatus, Output, Stdio};

/// Lines kept of what a failed program printed.
const TAIL_LINES: usize = 15;

/// A host program could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program is not installed.
    #[error("the program '{program}' is not installed; `torpor setup` installs it, or install it yourself")]
    Missing {
        /// Name of the program.
        program: String,
    },
    /// The program could not be started or waited for.
    #[error("cannot run '{program}': {source}")]
    Start {
        /// Name of the program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The program ran and failed.
    #[error("'{program}' failed ({status}); it said:\n{tail}")]
    Failed {
        /// Name of the program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it printed.
        tail: String,
    },
}

/// A command that dies with the thread that started it and speaks the language this program parses.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE").env("PATH", search_path()).stdin(Stdio::null());
    command
}

/// The caller's search path with the system directories that a user's path may lack.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// Runs to the end; the output is given back.
pub(crate) fn run(command: &mut Command) -> Result<Output, CommandError> {
    let program = program_name(command);
    let output = command.output().map_err(|source| start_error(&program, source))?;
    if output.status.success() {
        return Ok(output);
    }
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    Err(CommandError::Failed { program, status: output.status, tail })
}

/// Runs to the end, giving every line the program prints (on either output) to `line` as it comes.
pub(crate) fn run_lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<(), CommandError> {
    let program = program_name(command);
    let start = |source| start_error(&program, source);
    let (reader, writer) = io::pipe().map_err(start)?;
    command.stdout(writer.try_clone().map_err(start)?).stderr(writer);
    let mut child = command.spawn().map_err(start)?;
    // The command still holds the writing end; without this the reader would never see the end of it.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = std::collections::VecDeque::with_capacity(TAIL_LINES);
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.read_until(b'\n', &mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(source) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(start_error(&program, source));
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end();
        line(text);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text.to_owned());
    }
    let status = child.wait().map_err(|source| start_error(&program, source))?;
    if status.success() {
        return Ok(());
    }
    Err(CommandError::Failed { program, status, tail: Vec::from(tail).join("\n") })
}

fn program_name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn start_error(program: &str, source: io::Error) -> CommandError {
    if source.kind() == io::ErrorKind::NotFound {
        CommandError::Missing { program: program.to_owned() }
    } else {
        CommandError::Start { program: program.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_reported_with_its_last_words() {
        let error = run(command("sh").args(["-c", "echo why; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("'sh' failed") && error.contains("why"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run_lines(&mut command("no-such-program-anywhere"), |_| ()).unwrap_err();
        assert!(matches!(error, CommandError::Missing { program } if program == "no-such-program-anywhere"));
    }

    #[test]
    fn every_line_of_both_outputs_arrives() {
        let mut lines = Vec::new();
        run_lines(command("sh").args(["-c", "echo a; echo b >&2; printf c"]), |line| {
            lines.push(line.to_owned())
        })
        .unwrap();
        assert_eq!(lines, ["a", "b", "c"]);
    }
}

//! TXT records that prove a domain, set by a program of the operator's.
//!
//! It is called as lego's provider `exec` calls its: `PROGRAM present|cleanup NAME VALUE`, NAME being the whole name with
//! a dot at its end. It has to return when the record can be seen by the world (or is gone), with status 0. Two values may be
//! present under one name at the same time.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::error::AcmeError;

/// How long the program may take: records need minutes to spread.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Bytes of what the program printed that go into an error.
const SHOWN_BYTES: usize = 500;

/// The program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsHook {
    program: PathBuf,
}

// === impl DnsHook ===

impl DnsHook {
    /// `program` is called by its path, without a shell.
    pub fn new(program: PathBuf) -> DnsHook {
        DnsHook { program }
    }

    /// Sets the record that proves `domain`.
    pub(super) async fn present(&self, domain: &str, value: &str) -> Result<(), AcmeError> {
        self.call("present", domain, value).await
    }

    /// Removes it.
    pub(super) async fn clean_up(&self, domain: &str, value: &str) -> Result<(), AcmeError> {
        self.call("cleanup", domain, value).await
    }

    async fn call(&self, action: &'static str, domain: &str, value: &str) -> Result<(), AcmeError> {
        let record = format!("_acme-challenge.{domain}.");
        let failed = |why: String| AcmeError::Hook {
            program: self.program.display().to_string(),
            action,
            record: record.clone(),
            why,
        };
        let mut command = Command::new(&self.program);
        command.args([action, &record, value]).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(TIME_LIMIT, command.output())
            .await
            .map_err(|_| failed(format!("it took longer than {} s", TIME_LIMIT.as_secs())))?
            .map_err(|error| failed(format!("it cannot be run: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let printed = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        let end = &printed[printed.len().saturating_sub(SHOWN_BYTES)..];
        Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(end).trim())))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn hook(dir: &tempfile::TempDir, script: &str) -> DnsHook {
        let program = dir.path().join("hook");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        DnsHook::new(program)
    }

    #[tokio::test]
    async fn the_hook_is_called_as_legos_are() {
        let dir = tempfile::tempdir().unwrap();
        let seen = dir.path().join("seen");
        let hook = hook(&dir, &format!("echo \"$@\" >> {}", seen.display()));
        hook.present("example.com", "value").await.unwrap();
        hook.clean_up("example.com", "value").await.unwrap();
        let expected =
            "present _acme-challenge.example.com. value\ncleanup _acme-challenge.example.com. value\n";
        assert_eq!(std::fs::read_to_string(seen).unwrap(), expected);
    }

    #[tokio::test]
    async fn a_hook_that_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            hook(&dir, "echo no such zone >&2; exit 3").present("example.com", "v").await.unwrap_err();
        let error = error.to_string();
        assert!(error.contains("exit status: 3: no such zone"), "{error}");
        let missing = DnsHook::new(dir.path().join("missing"));
        let error = missing.present("example.com", "v").await.unwrap_err().to_string();
        assert!(error.contains("cannot be run"), "{error}");
    }
}

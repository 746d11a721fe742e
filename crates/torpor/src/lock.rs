//! The lock on a data directory: one server, or one set-up, at a time.
//!
//! `flock` on `torpor.lock`, whose text is the holder's process id. The kernel lets go of it when the holder
//! ends, however it ends; the file stays.
//!
//! A holder that is killed while it starts another process may leave one behind that has not become a program yet, and has
//! the lock until it does. So a lock whose holder is gone is waited for.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::layout::DataDir;

/// How long the lock of a holder that is gone is waited for, and how often it is tried.
const LIMIT: Duration = Duration::from_secs(30);
const TRY_EVERY: Duration = Duration::from_millis(20);

/// Holds the lock until dropped.
#[derive(Debug)]
pub(crate) struct DataDirLock {
    _file: File,
}

/// The data directory is not ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Somebody else has it.
    #[error(
        "another torpor (process {pid}) works on {data_dir}. Stop it first (kill {pid}), or choose another \
         --data-dir"
    )]
    Held { pid: String, data_dir: String },
    /// The lock file cannot be used.
    #[error("cannot use {path}: {cause}")]
    Io { path: String, cause: std::io::Error },
}

// === impl DataDirLock ===

impl DataDirLock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(data_dir: &DataDir) -> Result<DataDirLock, LockError> {
        let path = data_dir.lock();
        let io = |cause| LockError::Io { path: path.display().to_string(), cause };
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let pid = std::process::id();
                    file.set_len(0).and_then(|()| writeln!(file, "{pid}")).map_err(io)?;
                    return Ok(DataDirLock { _file: file });
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let pid = holder_text(&mut file);
                    let is_gone = pid.as_ref().is_some_and(|pid| !Path::new("/proc").join(pid).exists());
                    if !is_gone || begun.elapsed() > LIMIT {
                        let pid = pid.unwrap_or_else(|| "unknown".to_owned());
                        return Err(LockError::Held { pid, data_dir: data_dir.root().display().to_string() });
                    }
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "there is no event to wait for, and nobody to hold up"
                    )]
                    std::thread::sleep(TRY_EVERY);
                }
                Err(errno) => return Err(io(errno.into())),
            }
        }
    }

    /// The process that has the lock, if any.
    pub(crate) fn holder(data_dir: &DataDir) -> Option<u32> {
        let mut file = File::open(data_dir.lock()).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => holder_text(&mut file)?.parse().ok(),
            _ => None,
        }
    }
}

fn holder_text(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_the_process_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::create(dir.path()).unwrap();
        let first = DataDirLock::take(&data_dir).unwrap();
        let refusal = DataDirLock::take(&data_dir).unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        assert_eq!(DataDirLock::holder(&data_dir), Some(std::process::id()));
        drop(first);
        assert_eq!(DataDirLock::holder(&data_dir), None);
        DataDirLock::take(&data_dir).unwrap();
    }

    #[test]
    fn a_server_that_was_killed_while_it_started_a_process_is_followed_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::create(dir.path()).unwrap();
        // More than any kernel gives.
        std::fs::write(data_dir.lock(), "999999999\n").unwrap();
        let left = File::open(data_dir.lock()).unwrap();
        flock(&left, FlockOperation::LockExclusive).unwrap();
        let (taken, waiting) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| taken.send(DataDirLock::take(&data_dir).map(drop)).unwrap());
            // Not before the other one lets go.
            assert!(waiting.recv_timeout(TRY_EVERY * 5).is_err());
            drop(left);
            waiting.recv().unwrap().unwrap();
        });
    }
}

//! The terminal this program was started in: raw while a shell runs, as it was afterwards, whatever happens.

use std::io::{self, Read};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use super::process::TerminalSize;

/// How much is read from standard input at once, in bytes.
const READ_BYTES: usize = 32 * 1024;

/// Keeps the terminal raw: every key goes to the sandbox, Ctrl-C too. Dropped, it is as it was.
#[derive(Debug)]
pub(super) struct RawMode {
    before: Termios,
}

// === impl RawMode ===

impl RawMode {
    /// Makes the terminal of standard input raw.
    pub(super) fn enter() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Flush, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // There is nobody left to tell of a failure.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The terminal's size; 80 by 24 where it does not say.
pub(super) fn size() -> TerminalSize {
    match tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            TerminalSize { columns: size.ws_col, rows: size.ws_row }
        }
        _ => TerminalSize { columns: 80, rows: 24 },
    }
}

/// What comes in on standard input, until its end.
///
/// Read on a thread of its own: a read that waits for a key cannot be cancelled, and must not keep the program from
/// ending (as tokio's would).
pub(super) fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    });
    receiver
}

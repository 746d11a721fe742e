//! How a process ended, in the words of the protocol's first implementation, which clients show to people.

use rustix::process::WaitStatus;
use torpor_envd_api::process::process_event::EndEvent;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled {
        /// The signal's number.
        signal: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
}

// === impl End ===

impl End {
    /// Reads the status of a process that has ended.
    pub(crate) fn from_status(status: WaitStatus) -> Self {
        const CORE_DUMPED: i32 = 0x80;
        match status.terminating_signal() {
            Some(signal) => Self::Signaled { signal, core_dumped: status.as_raw() & CORE_DUMPED != 0 },
            None => Self::Exited(status.exit_status().unwrap_or(-1)),
        }
    }

    /// The protocol's event.
    pub(crate) fn to_event(self) -> EndEvent {
        let (exit_code, exited) = match self {
            Self::Exited(code) => (code, true),
            Self::Signaled { .. } => (-1, false),
        };
        let status = self.to_string();
        let error = (self != Self::Exited(0)).then(|| status.clone());
        EndEvent { exit_code, exited, status, error, ..Default::default() }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signaled { signal, core_dumped } => {
                match signal_name(signal) {
                    Some(name) => write!(f, "signal: {name}")?,
                    None => write!(f, "signal: signal {signal}")?,
                }
                f.write_str(if core_dumped { " (core dumped)" } else { "" })
            }
        }
    }
}

/// What a signal is called.
fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "hangup",
        "interrupt",
        "quit",
        "illegal instruction",
        "trace/breakpoint trap",
        "aborted",
        "bus error",
        "floating point exception",
        "killed",
        "user defined signal 1",
        "segmentation fault",
        "user defined signal 2",
        "broken pipe",
        "alarm clock",
        "terminated",
        "stack fault",
        "child exited",
        "continued",
        "stopped (signal)",
        "stopped",
        "stopped (tty input)",
        "stopped (tty output)",
        "urgent I/O condition",
        "CPU time limit exceeded",
        "file size limit exceeded",
        "virtual timer expired",
        "profiling timer expired",
        "window changed",
        "I/O possible",
        "power failure",
        "bad system call",
    ];
    let index = usize::try_from(signal).ok()?.checked_sub(1)?;
    NAMES.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_the_words_clients_know() {
        let text = |end: End| end.to_event().status;
        assert_eq!(text(End::Exited(0)), "exit status 0");
        assert_eq!(text(End::Exited(1)), "exit status 1");
        assert_eq!(text(End::Signaled { signal: 9, core_dumped: false }), "signal: killed");
        assert_eq!(text(End::Signaled { signal: 15, core_dumped: false }), "signal: terminated");
        assert_eq!(
            text(End::Signaled { signal: 11, core_dumped: true }),
            "signal: segmentation fault (core dumped)"
        );
        assert_eq!(text(End::Signaled { signal: 40, core_dumped: false }), "signal: signal 40");
    }

    #[test]
    fn only_a_clean_exit_has_no_error() {
        assert_eq!(End::Exited(0).to_event().error, None);
        assert_eq!(End::Exited(2).to_event().error.as_deref(), Some("exit status 2"));
        let killed = End::Signaled { signal: 9, core_dumped: false }.to_event();
        assert_eq!((killed.exit_code, killed.exited), (-1, false));
    }
}

//! A client for QEMU's control socket (QMP): JSON lines, answers in order, events in between.
//!
//! Own code rather than the `qapi` crate: handing QEMU one end of a socket pair (`getfd`) needs `SCM_RIGHTS`, which
//! `qapi` does not do, and of QEMU's several hundred commands ten are used.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc, watch};

use super::process::io_error;
use crate::vmm::VmmError;

/// How long a command may take that does nothing which takes time.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// The connection. A command waits for the one before it.
#[derive(Debug)]
pub(super) struct Qmp {
    exchange: Mutex<Exchange>,
    log: PathBuf,
    out_of_space: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Exchange {
    write: OwnedWriteHalf,
    incoming: mpsc::UnboundedReceiver<Message>,
    /// States of a migration that were announced and not yet asked for.
    migrations: VecDeque<String>,
    last_id: u64,
}

/// A line from QEMU.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Event {
        event: String,
        #[serde(default)]
        data: Value,
    },
    Done {
        #[serde(rename = "return")]
        value: Value,
        id: u64,
    },
    Failed {
        error: Failure,
        #[serde(default)]
        id: Option<u64>,
    },
    Greeting {
        #[serde(rename = "QMP")]
        _greeting: Value,
    },
}

#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

// === impl Qmp ===

impl Qmp {
    /// Waits for QEMU's greeting on a fresh connection and leaves its negotiation mode.
    pub(super) async fn open(stream: UnixStream, log: PathBuf) -> Result<Self, VmmError> {
        let (read, write) = stream.into_split();
        let (sender, incoming) = mpsc::unbounded_channel();
        // Events must be read even while nobody asks, or they would pile up in QEMU. Ends with the connection.
        let (stops, out_of_space) = watch::channel(0);
        tokio::spawn(read_messages(read, sender, stops));
        let exchange = Exchange { write, incoming, migrations: VecDeque::new(), last_id: 0 };
        let qmp = Self { exchange: Mutex::new(exchange), log, out_of_space };
        qmp.execute_within("waiting for QEMU", Duration::from_secs(60), "qmp_capabilities", json!({}), None)
            .await?;
        Ok(qmp)
    }

    /// Executes a command that does nothing which takes time.
    pub(super) async fn execute(
        &self,
        doing: &'static str,
        command: &str,
        arguments: Value,
    ) -> Result<Value, VmmError> {
        self.execute_within(doing, COMMAND_LIMIT, command, arguments, None).await
    }

    /// Gives QEMU a descriptor under a name.
    pub(super) async fn give_fd(
        &self,
        doing: &'static str,
        name: &str,
        fd: BorrowedFd<'_>,
    ) -> Result<(), VmmError> {
        let arguments = json!({ "fdname": name });
        self.execute_within(doing, COMMAND_LIMIT, "getfd", arguments, Some(fd)).await.map(drop)
    }

    /// Executes a command with a limit of its own, and with a descriptor attached.
    pub(super) async fn execute_within(
        &self,
        doing: &'static str,
        within: Duration,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, VmmError> {
        let exchange = async { self.exchange.lock().await.execute(command, arguments, fd).await };
        match tokio::time::timeout(within, exchange).await {
            Err(_) => Err(VmmError::Timeout { doing, within }),
            Ok(Err(error)) => Err(self.explain(doing, error)),
            Ok(Ok(Err(failure))) => Err(VmmError::Refused { doing, why: failure.desc }),
            Ok(Ok(Ok(value))) => Ok(value),
        }
    }

    /// Forgets what was announced of earlier migrations.
    pub(super) async fn forget_migrations(&self) {
        let mut exchange = self.exchange.lock().await;
        while let Ok(message) = exchange.incoming.try_recv() {
            exchange.note(message);
        }
        exchange.migrations.clear();
    }

    /// Waits until QEMU has finished the migration that was asked for.
    pub(super) async fn migrated(&self, doing: &'static str, within: Duration) -> Result<(), VmmError> {
        let finished = async { self.exchange.lock().await.migrated().await };
        match tokio::time::timeout(within, finished).await {
            Err(_) => Err(VmmError::Timeout { doing, within }),
            Ok(Err(error)) => Err(self.explain(doing, error)),
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                let info = self.execute(doing, "query-migrate", json!({})).await?;
                let why = info.get("error-desc").and_then(Value::as_str).unwrap_or("it gave no reason");
                Err(VmmError::Refused { doing, why: why.to_owned() })
            }
        }
    }

    /// Changes each time QEMU stopped the guest because a write found no space.
    pub(super) fn out_of_space(&self) -> watch::Receiver<u64> {
        self.out_of_space.clone()
    }

    /// What an error of the connection means: mostly that the process has ended.
    pub(super) fn explain(&self, doing: &'static str, error: io::Error) -> VmmError {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
        match error.kind() {
            BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof => {
                VmmError::Died { doing, last_words: crate::logs::last_words(&self.log) }
            }
            _ => io_error(doing, error),
        }
    }
}

// === impl Exchange ===

impl Exchange {
    async fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<Result<Value, Failure>> {
        self.last_id += 1;
        let mut line =
            serde_json::to_vec(&json!({ "execute": command, "arguments": arguments, "id": self.last_id }))?;
        line.push(b'\n');
        let stream: &UnixStream = self.write.as_ref();
        let fds = fd.as_slice();
        let mut sent = 0;
        while sent < line.len() {
            // The descriptor goes with the first byte.
            let fds = if sent == 0 { fds } else { &[] };
            let send = || torpor_sys::send_with_fds(stream.as_fd(), &line[sent..], fds);
            sent += stream.async_io(Interest::WRITABLE, send).await?;
        }
        loop {
            match self.next().await? {
                // An answer to a command nobody waits for any more is skipped.
                Message::Done { value, id } if id == self.last_id => return Ok(Ok(value)),
                Message::Failed { error, id } if id.is_none_or(|id| id == self.last_id) => {
                    return Ok(Err(error));
                }
                message => self.note(message),
            }
        }
    }

    async fn migrated(&mut self) -> io::Result<bool> {
        loop {
            while let Some(status) = self.migrations.pop_front() {
                match status.as_str() {
                    "completed" => return Ok(true),
                    "failed" | "cancelled" => return Ok(false),
                    _ => {}
                }
            }
            let message = self.next().await?;
            self.note(message);
        }
    }

    async fn next(&mut self) -> io::Result<Message> {
        self.incoming.recv().await.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn note(&mut self, message: Message) {
        if let Message::Event { event, data } = message
            && event == "MIGRATION"
            && let Some(status) = data.get("status").and_then(Value::as_str)
        {
            self.migrations.push_back(status.to_owned());
        }
    }
}

async fn read_messages(
    read: OwnedReadHalf,
    sender: mpsc::UnboundedSender<Message>,
    stops: watch::Sender<u64>,
) {
    let mut lines = BufReader::new(read).lines();
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line,
            // Whoever asked is gone: close, so that another can connect.
            () = sender.closed() => return,
        };
        let Ok(Some(line)) = line else { return };
        let message = match serde_json::from_str(&line) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%error, line, "QEMU said something that was not understood");
                continue;
            }
        };
        // Only answers and migrations matter; keeping other events would let a guest fill memory.
        let keep = match &message {
            Message::Event { event, data } => {
                tracing::debug!(event, %data, "QEMU event");
                if event == "BLOCK_IO_ERROR" && data["action"] == "stop" {
                    stops.send_modify(|count| *count += 1);
                }
                event == "MIGRATION"
            }
            Message::Done { .. } | Message::Failed { .. } => true,
            Message::Greeting { .. } => false,
        };
        if keep && sender.send(message).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line_is_told_from_the_others() {
        let kind = |line: &str| match serde_json::from_str(line).unwrap() {
            Message::Event { event, .. } => event,
            Message::Done { id, .. } => format!("done {id}"),
            Message::Failed { error, .. } => error.desc,
            Message::Greeting { .. } => "greeting".to_owned(),
        };
        assert_eq!(kind(r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#), "greeting");
        assert_eq!(kind(r#"{"return": {}, "id": 7}"#), "done 7");
        assert_eq!(kind(r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 7}"#), "no");
        assert_eq!(kind(r#"{"timestamp": {"seconds": 1}, "event": "STOP"}"#), "STOP");
    }
}

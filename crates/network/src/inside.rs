//! Work inside a network namespace.
//!
//! A network namespace belongs to a thread, and what a thread opens (sockets, taps), reads under `/proc/sys/net` and starts (`nft`) belongs to
//! the thread's namespace. So such work gets a thread of its own that enters the namespace and ends
//! with the work: no thread of the runtime ever changes its namespace.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

/// The calling thread's network namespace.
pub(crate) fn current() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
}

/// Moves the calling thread into `netns`.
pub(crate) fn enter(netns: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Runs `work` on a new thread.
pub(crate) async fn on_thread<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let (reply, result) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let _runtime = runtime.enter();
        // Whoever asked may have lost interest.
        let _ = reply.send(work());
    })?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked").into()))
}

/// Runs `work` on a new thread inside `netns`.
pub(crate) async fn inside<T, E>(
    netns: Arc<OwnedFd>,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    on_thread(move || {
        enter(&netns)?;
        drop(netns);
        work()
    })
    .await
}

/// Loads nft rules in the calling thread's namespace: all of them or, with an error, none.
pub(crate) fn load_rules(rules: &str) -> io::Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = nft.stdin.take() {
        // nft tells on standard error why it stopped reading.
        let _ = stdin.write_all(rules.as_bytes());
    }
    succeeded("nft", nft.wait_with_output()?).map(drop)
}

/// Runs a program in the calling thread's namespace; its standard output if it succeeds.
pub(crate) fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    succeeded(program, output)
}

fn succeeded(program: &str, output: Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}: {}", output.status, said.trim())))
}

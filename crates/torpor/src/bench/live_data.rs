//! Data that a process in a sandbox holds in memory, and its checksum.

use super::api::{Api, ApiError, Handle};

/// Starts a process that holds `mb` MB of random data; returns their checksum.
pub(crate) async fn put(api: &Api, sandbox: &Handle, mb: u32) -> Result<String, ApiError> {
    let holder = format!(
        "import hashlib, os, signal\n\
         data = [os.urandom(1000000) for _ in range({mb})]\n\
         def tell(*_):\n    \
             digest = hashlib.sha256()\n    \
             for part in data: digest.update(part)\n    \
             open('/tmp/digest.new', 'w').write(digest.hexdigest()); os.rename('/tmp/digest.new', '/tmp/digest')\n\
         signal.signal(signal.SIGUSR1, tell)\n\
         tell()\n\
         while True: signal.pause()\n"
    );
    let start = format!(
        "cat > /tmp/holder.py <<'END'\n{holder}END\nrm -f /tmp/digest\n\
         setsid python3 /tmp/holder.py </dev/null >/tmp/holder.log 2>&1 &\necho $! > /tmp/holder.pid"
    );
    api.run(sandbox, &start).await?;
    wait_for_digest(api, sandbox).await
}

/// Has the process read all of it, compute its checksum anew, and compares.
pub(crate) async fn check(api: &Api, sandbox: &Handle, before: &str) -> Result<(), ApiError> {
    api.run(sandbox, "rm /tmp/digest; kill -USR1 $(cat /tmp/holder.pid)").await?;
    let after = wait_for_digest(api, sandbox).await?;
    if after == before {
        return Ok(());
    }
    let why = format!("the live data changed: SHA-256 {before} before, {after} after");
    Err(ApiError::Command { command: "sha256".to_owned(), why })
}

async fn wait_for_digest(api: &Api, sandbox: &Handle) -> Result<String, ApiError> {
    let wait = "for i in $(seq 3000); do [ -s /tmp/digest ] && exec cat /tmp/digest; \
                kill -0 $(cat /tmp/holder.pid) || exec cat /tmp/holder.log; sleep 0.1; done; exit 1";
    api.run(sandbox, wait).await
}

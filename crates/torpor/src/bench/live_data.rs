//! Data that a process in a sandbox holds in memory, and its checksum.

use super::api::{Api, ApiError, Handle};

/// Starts a process that holds `mb` MB of random data, and writes to every page of them, changing nothing, when it gets
/// SIGUSR2; returns their checksum.
pub(crate) async fn put(api: &Api, sandbox: &Handle, mb: u32) -> Result<String, ApiError> {
    let holder = format!(
        "import hashlib, os, signal\n\
         data = [bytearray(os.urandom(1000000)) for _ in range({mb})]\n\
         def say(name, text):\n    \
             open('/tmp/new', 'w').write(text); os.rename('/tmp/new', '/tmp/' + name)\n\
         def tell(*_):\n    \
             digest = hashlib.sha256()\n    \
             for part in data: digest.update(part)\n    \
             say('digest', digest.hexdigest())\n\
         def rewrite(*_):\n    \
             for part in data: part[::4096] = part[::4096]; part[-1] = part[-1]\n    \
             say('rewritten', 'yes')\n\
         signal.signal(signal.SIGUSR1, tell)\n\
         signal.signal(signal.SIGUSR2, rewrite)\n\
         tell()\n\
         while True: signal.pause()\n"
    );
    let start = format!(
        "cat > /tmp/holder.py <<'END'\n{holder}END\nrm -f /tmp/digest; touch /tmp/rewritten\n\
         setsid python3 /tmp/holder.py </dev/null >/tmp/holder.log 2>&1 &\necho $! > /tmp/holder.pid"
    );
    api.run(sandbox, &start).await?;
    wait_for(api, sandbox, "/tmp/digest").await
}

/// Has the process read all of it, compute its checksum anew, and compares.
pub(crate) async fn check(api: &Api, sandbox: &Handle, before: &str) -> Result<(), ApiError> {
    api.run(sandbox, "rm /tmp/digest; kill -USR1 $(cat /tmp/holder.pid)").await?;
    let after = wait_for(api, sandbox, "/tmp/digest").await?;
    if after == before {
        return Ok(());
    }
    let why = format!("the live data changed: SHA-256 {before} before, {after} after");
    Err(ApiError::Command { command: "sha256".to_owned(), why })
}

/// Has the process write to every page of it, and waits until it has.
pub(crate) async fn rewrite(api: &Api, sandbox: &Handle) -> Result<(), ApiError> {
    api.run(sandbox, "rm /tmp/rewritten; kill -USR2 $(cat /tmp/holder.pid)").await?;
    wait_for(api, sandbox, "/tmp/rewritten").await.map(drop)
}

/// Waits, for an hour at most, until the holder has written `file`; returns what is in it.
async fn wait_for(api: &Api, sandbox: &Handle, file: &str) -> Result<String, ApiError> {
    let wait = format!(
        "for i in $(seq 36000); do [ -s {file} ] && exec cat {file}; \
         kill -0 $(cat /tmp/holder.pid) || {{ cat /tmp/holder.log; exit 1; }}; sleep 0.1; done; exit 1"
    );
    api.run(sandbox, &wait).await
}

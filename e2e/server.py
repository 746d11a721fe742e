"""Starts, stops and kills a real `torpor serve` for the end-to-end suites.

As a module: `Server`. As a program: `python e2e/server.py COMMAND...` runs a command (the JavaScript suite, say) with
E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL of a server that lives as long as the command.

What it takes from the environment, all optional:

    TORPOR_BIN              the binary; default target/release/torpor
    TORPOR_TEST_DATA_DIR    a data directory that `torpor setup` made; default target/e2e-data, set up when absent
    TORPOR_E2E_URL          a server that runs already (then E2B_API_KEY is needed too): none is started
    TORPOR_VAULT_MEMORY     how machines have their memory, private or shared: the server takes it from its environment
    TORPOR_LOG_DIR          where the server's log goes; default target/logs
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = Path(os.environ.get("TORPOR_BIN", TARGET / "release" / "torpor"))
LOGS = Path(os.environ.get("TORPOR_LOG_DIR", TARGET / "logs"))
HTTPS_DOMAIN = "e2b.test"
START_SECONDS = 120
STOP_SECONDS = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torpor(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess:
    """Runs the command-line tool to its end, with its output as text."""
    return subprocess.run(
        [str(BINARY), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def data_dir() -> Path:
    """The data directory under test, with a base template in it."""
    given = os.environ.get("TORPOR_TEST_DATA_DIR")
    path = Path(given) if given else TARGET / "e2e-data"
    if given is None:
        subprocess.run([str(BINARY), "setup", "--data-dir", str(path), "--yes"], stdin=subprocess.DEVNULL, check=True)
    return path


class Server:
    """One server on one data directory. The port stays the same when it is started again, as a user's would."""

    def __init__(self, data: Path):
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.https_port = free_port()
        self.authority = data / "tls" / "ca.pem"
        self.log = LOGS / f"e2e-server-{os.getpid()}.log"
        self.process: subprocess.Popen | None = None
        self.api_key = ""
        self.settings: list[str] = []

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is not running"
        return self.process.pid

    def start(self) -> None:
        if not self.api_key:
            made = torpor("key", "create", "--data-dir", str(self.data), "--json")
            assert made.returncode == 0, f"torpor key create failed: {made.stderr}"
            self.api_key = json.loads(made.stdout)["key"]
        if not self.authority.exists():
            made = torpor("tls", "--data-dir", str(self.data), "--domain", HTTPS_DOMAIN)
            assert made.returncode == 0, f"torpor tls failed: {made.stderr}"
        LOGS.mkdir(parents=True, exist_ok=True)
        listen = ["--listen", f"127.0.0.1:{self.port}", "--https-listen", f"127.0.0.1:{self.https_port}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(BINARY), "serve", "--data-dir", str(self.data), *listen, *self.settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            ended = self.process.poll()
            assert ended is None, f"the server exited with {ended}; {self.end_of_log()}"
            assert time.monotonic() < deadline, f"no answer in {START_SECONDS} s; {self.end_of_log()}"
            time.sleep(0.05)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status in (200, 204)
        except (urllib.error.URLError, OSError):
            return False

    def end_of_log(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "the end of its log:\n" + "\n".join(lines[-25:])

    def stop(self) -> None:
        """As a service manager would: SIGTERM, patience, and then not."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.process = None

    def kill(self) -> None:
        """`kill -9`: nothing of the server's own gets to run."""
        assert self.process is not None, "the server is not running"
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        self.process = None

    def environment(self) -> dict[str, str]:
        return {"E2B_API_KEY": self.api_key, "E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}


def main() -> int:
    command = sys.argv[1:]
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    url = os.environ.get("TORPOR_E2E_URL")
    if url:
        given = {"E2B_API_URL": url, "E2B_SANDBOX_URL": url}
        return subprocess.run(command, env={**os.environ, **given}, check=False).returncode
    server = Server(data_dir())
    try:
        server.start()
        return subprocess.run(command, env={**os.environ, **server.environment()}, check=False).returncode
    finally:
        server.stop()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())

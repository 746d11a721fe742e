"""A sandbox keeps a running process, a loaded variable and a file across a pause.

The published `e2b` SDK, unmodified. It finds the server through three environment variables:

    E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL

Run it with `make demo`, or on its own: `pip install e2b && python demo/main_job.py`.
"""

import importlib.metadata
import json
import os
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from e2b import PtySize, Sandbox, SandboxState

# Runs inside the sandbox. Nothing of it is ever on disk: the counter lives in this process's memory alone.
COUNTER = """
import http.server, json, os, threading, time

count = 0

def tick():
    global count
    while True:
        time.sleep(0.1)
        count += 1

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"count": count, "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

TICKS_PER_SECOND = 10
SECONDS_ASLEEP = 3
DEADLINE_SECONDS = 60

steps: dict[str, float] = {}


@contextmanager
def step(name: str):
    started = time.perf_counter()
    yield
    steps[name] = round((time.perf_counter() - started) * 1000, 1)
    print(f"  {name:<34}{steps[name]:>9.1f} ms", flush=True)


def check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def port_8000(sandbox_id: str) -> tuple[int, dict]:
    """What a client sees on the sandbox's port 8000: the HTTP status, and the body if it answered."""
    request = urllib.request.Request(
        os.environ["E2B_SANDBOX_URL"],
        headers={"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "8000"},
    )
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, {}


def wait_for_port_8000(sandbox_id: str, at_least: int = 0) -> dict:
    deadline = time.monotonic() + DEADLINE_SECONDS
    status, body = port_8000(sandbox_id)
    while status != 200 or body["count"] < at_least:
        check(
            time.monotonic() < deadline,
            f"port 8000 did not reach count {at_least} in {DEADLINE_SECONDS} s; last answer: {status} {body}",
        )
        time.sleep(0.05)
        status, body = port_8000(sandbox_id)
    return body


def listed_state(sandbox_id: str) -> SandboxState | None:
    pages = Sandbox.list()
    while pages.has_next:
        for sandbox in pages.next_items():
            if sandbox.sandbox_id == sandbox_id:
                return sandbox.state
    return None


def type_into_terminal(sandbox: Sandbox, pid: int, line: str, until: str) -> None:
    """Attaches to the terminal, types a line and reads until `until` is printed."""
    terminal = sandbox.pty.connect(pid, timeout=DEADLINE_SECONDS)
    sandbox.pty.send_stdin(pid, line.encode() + b"\n")
    seen = b""
    for _, _, output in terminal:
        seen += output or b""
        if until.encode() in seen:
            break
    terminal.disconnect()
    check(until.encode() in seen, f"the terminal never printed {until!r}; it printed {seen!r}")


def main() -> None:
    print(f"Python {sys.version.split()[0]}, e2b {importlib.metadata.version('e2b')}")

    with step("create"):
        sandbox = Sandbox.create(timeout=300)
    sandbox_id = sandbox.sandbox_id
    try:
        with step("write a file"):
            sandbox.files.write("/home/user/note.txt", "written before the pause")
            sandbox.files.write("/home/user/counter.py", COUNTER)

        with step("start the counter on port 8000"):
            sandbox.commands.run("python3 /home/user/counter.py", background=True, timeout=0)
            wait_for_port_8000(sandbox_id, at_least=5)

        with step("set a variable in a terminal"):
            terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
            terminal.disconnect()
            type_into_terminal(sandbox, terminal.pid, "colour=violet; echo set-$((40 + 2))", until="set-42")

        before = wait_for_port_8000(sandbox_id)
        read_before = time.monotonic()

        with step("pause"):
            check(sandbox.pause() is True, "pause() did not say that it paused the sandbox")
        paused = time.monotonic()

        status, _ = port_8000(sandbox_id)
        check(status == 502, f"port 8000 of a paused sandbox answered {status}, expected 502")
        state = listed_state(sandbox_id)
        check(state == SandboxState.PAUSED, f"the listing says {state}, expected paused")
        time.sleep(max(0.0, paused + SECONDS_ASLEEP - time.monotonic()))

        resuming = time.monotonic()
        with step("connect (resume)"):
            sandbox = Sandbox.connect(sandbox_id, timeout=60)
        with step("first answer from port 8000"):
            after = wait_for_port_8000(sandbox_id)
        read_after = time.monotonic()

        # Between the two readings the machine ran for this long, and slept for the rest.
        ran = (paused - read_before) + (read_after - resuming)
        counted = after["count"] - before["count"]
        allowed = ran * TICKS_PER_SECOND + 5
        check(after["pid"] == before["pid"], f"another process answers: pid {before['pid']} became {after['pid']}")
        check(counted >= 0, f"the counter went back from {before['count']} to {after['count']}")
        check(
            counted <= allowed,
            f"the counter ran during the pause: {counted} ticks, but the machine ran only for {ran:.2f} s",
        )
        wait_for_port_8000(sandbox_id, at_least=after["count"] + 3)

        with step("read the file"):
            note = sandbox.files.read("/home/user/note.txt")
        check(note == "written before the pause", f"the file reads {note!r}")

        with step("read the variable"):
            type_into_terminal(sandbox, terminal.pid, 'echo "still-$colour"', until="still-violet")

        with step("run a command"):
            said = sandbox.commands.run("echo hello").stdout
        check(said == "hello\n", f"`echo hello` printed {said!r}")
    finally:
        with step("kill"):
            Sandbox.kill(sandbox_id)

    check(listed_state(sandbox_id) is None, "the killed sandbox is still listed")
    print(f"  counter: {before['count']} at the pause, {after['count']} after it, same process {after['pid']};")
    print(f"  asleep for {resuming - paused:.1f} s; file, terminal variable and port 8000 all there.")
    print(json.dumps({"program": "python", "sdk": importlib.metadata.version("e2b"), "milliseconds": steps}))


if __name__ == "__main__":
    try:
        main()
    except KeyError as missing:
        sys.exit(f"main_job.py: environment variable {missing} is not set; see the first lines of this file")
    except AssertionError as failure:
        sys.exit(f"main_job.py: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)

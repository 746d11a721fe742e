"""What several tests need: waiting for conditions, raw HTTP, terminals that are read until they say something."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from e2b import Sandbox, SandboxState

T = TypeVar("T")

# Software emulation is about ten times slower than the hardware; a deadline only has to end a hopeless wait.
DEADLINE_SECONDS = 60.0


def wait_for(probe: Callable[[], T], what: str, deadline_seconds: float = DEADLINE_SECONDS) -> T:
    """Asks until the answer is true, and returns it."""
    deadline = time.monotonic() + deadline_seconds
    while True:
        answer = probe()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {deadline_seconds} s for {what}; last answer: {answer!r}"
        time.sleep(0.05)


def together(count: int, act: Callable[[int], T]) -> list[T]:
    """Calls `act(0)`, `act(1)`, ... at the same time; the results in that order."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, range(count)))


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self):
        return json.loads(self.body)


def http(
    method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None, timeout: float = 60
) -> Answer:
    """One plain HTTP request; an error status is an answer like any other."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return Answer(answer.status, answer.read(), dict(answer.headers))
    except urllib.error.HTTPError as refusal:
        return Answer(refusal.code, refusal.read(), dict(refusal.headers))


def api(method: str, path: str, body=None, key: str | None = "", raw: bytes | None = None) -> Answer:
    """A control-plane request. `key=None` sends none; `raw` sends these bytes as they are."""
    headers = {}
    if key is not None:
        headers["X-API-Key"] = key or os.environ["E2B_API_KEY"]
    data = raw if raw is not None else (json.dumps(body).encode() if body is not None else None)
    if data is not None:
        headers["Content-Type"] = "application/json"
    return http(method, os.environ["E2B_API_URL"] + path, data, headers)


def routing(sandbox_id: str, port: int) -> dict[str, str]:
    """The headers that route a request to a port of a sandbox."""
    return {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)}


def port(sandbox_id: str, number: int, path: str = "/", method: str = "GET", body: bytes | None = None) -> Answer:
    return http(method, os.environ["E2B_SANDBOX_URL"] + path, body, routing(sandbox_id, number))


def listed(**query) -> dict[str, SandboxState]:
    """Every sandbox the listing shows, over all its pages: id to state."""
    pages = Sandbox.list(**query)
    found = {}
    while pages.has_next:
        for sandbox in pages.next_items():
            assert sandbox.sandbox_id not in found, f"{sandbox.sandbox_id} is listed twice"
            found[sandbox.sandbox_id] = sandbox.state
    return found


def read_until(terminal, wanted: bytes) -> bytes:
    """Reads a terminal until it has printed `wanted`. The handle's own timeout is the deadline."""
    seen = b""
    for _, _, output in terminal:
        seen += output or b""
        if wanted in seen:
            return seen
    raise AssertionError(f"the terminal ended without printing {wanted!r}; it printed {seen!r}")


def type_line(sandbox: Sandbox, pid: int, line: str, until: str) -> bytes:
    """Attaches to a terminal, types a line, reads until `until` is printed, and detaches."""
    terminal = sandbox.pty.connect(pid, timeout=DEADLINE_SECONDS)
    try:
        sandbox.pty.send_stdin(pid, line.encode() + b"\n")
        return read_until(terminal, until.encode())
    finally:
        terminal.disconnect()


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
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
threading.Thread(target=tick, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


def start_counter(sandbox: Sandbox) -> dict:
    """Starts a process that counts in memory and serves the count on port 8000; returns its first answer."""
    sandbox.files.write("/home/user/counter.py", COUNTER)
    sandbox.commands.run("python3 /home/user/counter.py", background=True, timeout=0)
    return wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter on port 8000")


def read_counter(sandbox_id: str) -> dict | None:
    answer = port(sandbox_id, 8000)
    return answer.json if answer.status == 200 else None

"""What this project is for: a paused sandbox comes back with everything in it."""

import json
import time

import pytest
from e2b import PtySize, Sandbox, SandboxState

from support import (
    listed,
    port,
    read_counter,
    start_counter,
    type_line,
    wait_for,
)


@pytest.mark.persistence
def test_processes_variables_files_and_ports_survive_a_pause(sandbox):
    first = start_counter(sandbox)
    sandbox.files.write("note.txt", "before")
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    terminal.disconnect()
    type_line(sandbox, terminal.pid, "colour=violet; echo set-$((40 + 2))", until="set-42")

    before = wait_for(lambda: (c := read_counter(sandbox.sandbox_id)) and c["count"] > 5 and c, "the counter to run")
    read_before = time.monotonic()
    assert sandbox.pause() is True
    paused = time.monotonic()
    assert port(sandbox.sandbox_id, 8000).status == 502
    assert listed()[sandbox.sandbox_id] == SandboxState.PAUSED
    wait_for(lambda: time.monotonic() > paused + 3, "three seconds to pass")

    resuming = time.monotonic()
    same = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    after = wait_for(lambda: read_counter(sandbox.sandbox_id), "port 8000 after the resume")
    read_after = time.monotonic()

    ran = (paused - read_before) + (read_after - resuming)
    assert after["pid"] == before["pid"] == first["pid"]
    assert before["count"] <= after["count"] <= before["count"] + ran * 10 + 5
    assert same.files.read("note.txt") == "before"
    type_line(same, terminal.pid, 'echo "still-$colour"', until="still-violet")
    wait_for(lambda: read_counter(sandbox.sandbox_id)["count"] > after["count"], "the counter to go on")


RANDOM_DATA = """
import hashlib, os, sys
data = bytearray(400_000_000)
for start in range(0, len(data), 4_000_000):
    data[start : start + 4_000_000] = os.urandom(4_000_000)
print("ready", flush=True)
for line in sys.stdin:
    print(hashlib.sha256(data).hexdigest(), flush=True)
"""


@pytest.mark.timeout(1200)
def test_400_megabytes_in_memory_are_the_same_after_each_of_ten_pauses(sandboxes):
    sandbox = sandboxes(timeout=3600)
    sandbox.files.write("holder.py", RANDOM_DATA)
    handle = sandbox.commands.run("exec python3 holder.py", background=True, stdin=True, timeout=0)
    for stdout, _, _ in handle:
        if stdout and "ready" in stdout:
            break
    handle.disconnect()

    def digest(sandbox) -> str:
        attached = sandbox.commands.connect(handle.pid, timeout=300)
        sandbox.commands.send_stdin(handle.pid, "again\n")
        said = ""
        for stdout, _, _ in attached:
            said += stdout or ""
            if said.endswith("\n"):
                break
        attached.disconnect()
        return said.strip()

    first = digest(sandbox)
    assert len(first) == 64
    for cycle in range(10):
        assert sandbox.pause() is True
        sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=3600)
        assert digest(sandbox) == first, f"the memory changed in pause {cycle + 1}"


def test_files_written_just_before_a_pause_are_there_after_many(sandbox):
    # Each round adds to memory-backed and disk-backed files without any sync; every round must see all before it.
    for number in range(10):
        sandbox.commands.run(f"echo {number} >> /home/user/disk.log; echo {number} >> /dev/shm/memory.log")
        assert sandbox.pause() is True
        sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=300)
        expected = "".join(f"{n}\n" for n in range(number + 1))
        assert sandbox.files.read("/home/user/disk.log") == expected
        assert sandbox.files.read("/dev/shm/memory.log") == expected


def test_a_command_started_before_a_pause_is_attached_to_after_it(sandbox):
    handle = sandbox.commands.run(
        "while [ ! -e /tmp/go ]; do sleep 0.05; done; echo woke; exit 0", background=True, timeout=0
    )
    handle.disconnect()
    sandbox.pause()
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    attached = same.commands.connect(handle.pid)
    same.files.write("/tmp/go", "")
    assert attached.wait().stdout == "woke\n"


def test_the_machine_is_the_same_one_not_a_new_boot(sandbox):
    boot_id = sandbox.files.read("/proc/sys/kernel/random/boot_id")
    sandbox.pause()
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert same.files.read("/proc/sys/kernel/random/boot_id") == boot_id


def test_environment_variables_given_at_creation_survive(sandboxes):
    sandbox = sandboxes(envs={"COLOUR": "violet"})
    sandbox.pause()
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert same.commands.run('echo "$COLOUR"').stdout == "violet\n"


def test_metadata_and_template_survive(sandboxes):
    sandbox = sandboxes(metadata={"kept": "yes"})
    before = sandbox.get_info()
    sandbox.pause()
    after = Sandbox.connect(sandbox.sandbox_id, timeout=300).get_info()
    assert (after.metadata, after.template_id) == (before.metadata, before.template_id)


def test_the_clock_is_right_after_a_pause(sandbox):
    sandbox.pause()
    paused = time.monotonic()
    wait_for(lambda: time.monotonic() > paused + 5, "five seconds to pass")
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    earliest = time.time()
    told = float(same.commands.run("date +%s.%N").stdout)
    latest = time.time()
    assert earliest - 0.5 <= told <= latest + 0.5


def test_sandboxes_of_one_template_have_different_random_bytes(sandboxes):
    drawn = [sandboxes().commands.run("head -c 16 /dev/urandom | od -An -tx1").stdout for _ in range(3)]
    assert len(set(drawn)) == 3


def test_a_sandbox_of_a_template_knows_the_time(sandbox):
    earliest = time.time()
    told = float(sandbox.commands.run("date +%s.%N").stdout)
    assert earliest - 0.5 <= told <= time.time() + 0.5


def test_a_listening_server_keeps_its_clients_data_across_pauses(sandbox):
    # A key-value store in memory, filled and read through the gateway.
    sandbox.files.write(
        "store.py",
        """
import http.server
store = {}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        store[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
    def do_GET(self):
        body = store.get(self.path, b"")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
""",
    )
    sandbox.commands.run("python3 store.py", background=True, timeout=0)
    wait_for(lambda: port(sandbox.sandbox_id, 8080).status == 200, "the store to listen")
    for number in range(5):
        value = json.dumps({"number": number}).encode()
        assert port(sandbox.sandbox_id, 8080, f"/{number}", "PUT", value).status == 204
        sandbox.pause()
        Sandbox.connect(sandbox.sandbox_id, timeout=300)
        for earlier in range(number + 1):
            answer = port(sandbox.sandbox_id, 8080, f"/{earlier}")
            assert (answer.status, answer.json) == (200, {"number": earlier})


def test_a_paused_sandbox_answers_502_on_every_port(sandbox):
    sandbox.pause()
    for number in (8000, 49983):
        for path in ("/", "/health"):
            answer = port(sandbox.sandbox_id, number, path)
            assert answer.status == 502
            assert answer.json["code"] == 502

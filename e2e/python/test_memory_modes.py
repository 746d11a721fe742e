"""Machines whose memory is private and machines whose memory is shared, under servers of either mode.

The other suites run in one mode: that of TORPOR_VAULT_MEMORY, private if it is not set.
"""

import pytest
from e2b import Sandbox, SandboxState

from support import api, listed, read_counter, start_counter, wait_for

pytestmark = pytest.mark.owns_server

MIB = 40
HOLDER = f"""
import hashlib, os, signal
data = os.urandom({MIB} << 20)
def tell(*_):
    open("/tmp/digest.new", "w").write(hashlib.sha256(data).hexdigest())
    os.rename("/tmp/digest.new", "/tmp/digest")
signal.signal(signal.SIGUSR1, tell)
tell()
while True: signal.pause()
"""


@pytest.fixture
def in_mode(server):
    """Ends the server and starts one with the mode given; the one after the test has the settings of before."""
    before = list(server.settings)

    def start(mode: str, killed: bool = False):
        server.kill() if killed else server.stop()
        server.settings = [*before, "--vault-memory", mode]
        server.start()

    yield start
    server.stop()
    server.settings = before
    server.start()


def hold_memory(sandbox: Sandbox) -> int:
    sandbox.files.write("/tmp/holder.py", HOLDER)
    handle = sandbox.commands.run("exec python3 /tmp/holder.py", background=True, timeout=0)
    handle.disconnect()
    # Once it has said what it holds, it hears signals.
    wait_for(lambda: sandbox.files.exists("/tmp/digest"), "the digest of what is held")
    return handle.pid


def digest(sandbox: Sandbox, pid: int) -> str:
    """The process computes it anew from what it holds."""
    said = sandbox.commands.run(
        f"rm -f /tmp/digest; kill -USR1 {pid}; for i in $(seq 300); do [ -e /tmp/digest ] && break; sleep 0.1; done; cat /tmp/digest"
    )
    return said.stdout


def has_ram_files(server) -> bool:
    return any((server.data / "vault" / "machines").glob("*/ram"))


@pytest.mark.parametrize("first, second", [("private", "shared"), ("shared", "private")])
def test_what_runs_or_is_paused_in_one_mode_goes_on_under_a_server_of_the_other(
    server, in_mode, sandboxes, first, second
):
    in_mode(first)
    runs, paused = sandboxes(), sandboxes()
    assert has_ram_files(server) == (first == "shared")
    counter = start_counter(runs)
    holder = hold_memory(paused)
    held = digest(paused, holder)
    assert len(held) == 64
    assert api("POST", f"/sandboxes/{paused.sandbox_id}/pause?waitDurable=true").status == 204
    child = sandboxes.own(runs.fork(timeout=600, count=1)[0])

    in_mode(second, killed=True)
    # A machine keeps its mode, and its sandbox pauses and goes on as ever.
    states = listed()
    assert states[runs.sandbox_id] == states[child.sandbox_id] == SandboxState.RUNNING
    assert states[paused.sandbox_id] == SandboxState.PAUSED
    for sandbox in (runs, child):
        assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/pause?waitDurable=true").status == 204
        sandbox.connect(timeout=600)
        now = wait_for(lambda s=sandbox: read_counter(s.sandbox_id), "the counter")
        assert now["pid"] == counter["pid"] and now["count"] >= counter["count"]
    # What the other mode saved is resumed, changed, copied and saved in this one.
    for _ in range(2):
        paused.connect(timeout=600)
        assert digest(paused, holder) == held
        grandchild = sandboxes.own(paused.fork(timeout=600, count=1)[0])
        assert digest(grandchild, holder) == held
        assert api("POST", f"/sandboxes/{paused.sandbox_id}/pause?waitDurable=true").status == 204
    paused.connect(timeout=600)
    assert digest(paused, holder) == held

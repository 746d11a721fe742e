"""The server dies; the sandboxes do not."""

import os
import re

import pytest
from e2b import Sandbox, SandboxState

from server import torpor
from support import api, listed, port, read_counter, start_counter, wait_for

pytestmark = pytest.mark.owns_server


def test_sandboxes_outlive_a_killed_server(server, sandboxes):
    running = [sandboxes() for _ in range(3)]
    counters = {sandbox.sandbox_id: start_counter(sandbox) for sandbox in running}
    server.kill()
    server.start()

    states = listed()
    assert {sandbox.sandbox_id: states.get(sandbox.sandbox_id) for sandbox in running} == {
        sandbox.sandbox_id: SandboxState.RUNNING for sandbox in running
    }
    for sandbox in running:
        same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
        assert same.commands.run("echo hello").stdout == "hello\n"
        counter = wait_for(lambda s=sandbox: read_counter(s.sandbox_id), "the counter")
        assert counter["pid"] == counters[sandbox.sandbox_id]["pid"]
        assert counter["count"] > counters[sandbox.sandbox_id]["count"]


@pytest.mark.persistence
def test_an_adopted_sandbox_can_be_paused_resumed_and_killed(server, sandboxes):
    sandbox = sandboxes()
    counter = start_counter(sandbox)
    server.kill()
    server.start()
    assert Sandbox.pause(sandbox.sandbox_id) is True
    assert port(sandbox.sandbox_id, 8000).status == 502
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    after = wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter")
    assert after["pid"] == counter["pid"]
    assert same.kill() is True
    assert sandbox.sandbox_id not in listed()


def test_a_paused_sandbox_outlives_a_killed_server(server, sandboxes):
    sandbox = sandboxes()
    counter = start_counter(sandbox)
    sandbox.files.write("note.txt", "kept")
    sandbox.pause()
    server.kill()  # at once: the pause may not even be durable yet
    server.start()
    assert listed()[sandbox.sandbox_id] == SandboxState.PAUSED
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert same.files.read("note.txt") == "kept"
    assert wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter")["pid"] == counter["pid"]


def test_sandboxes_outlive_an_ordinary_restart(server, sandboxes):
    sandbox = sandboxes()
    counter = start_counter(sandbox)
    server.stop()
    server.start()
    assert listed()[sandbox.sandbox_id] == SandboxState.RUNNING
    assert wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter")["pid"] == counter["pid"]


def test_a_sandbox_whose_time_ran_out_while_the_server_was_down_is_collected(server, sandboxes):
    sandbox = sandboxes()
    sandbox.set_timeout(2)
    server.kill()
    server.start()
    wait_for(lambda: sandbox.sandbox_id not in listed(), "the sandbox to expire")


def test_keys_and_metadata_outlive_a_restart(server, sandboxes):
    sandbox = sandboxes(metadata={"kept": "yes"})
    server.kill()
    server.start()
    assert sandbox.get_info().metadata == {"kept": "yes"}


def test_killing_the_server_again_and_again_loses_nothing(server, sandboxes):
    sandbox = sandboxes()
    for number in range(3):
        sandbox.commands.run(f"echo {number} >> log")
        if number % 2:
            sandbox.pause()
        server.kill()
        server.start()
        sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=300)
        assert sandbox.files.read("log") == "".join(f"{n}\n" for n in range(number + 1))


def test_a_full_vault_refuses_what_it_cannot_keep_and_names_the_missing_bytes(server, sandboxes):
    vault = server.data / "vault"
    if not vault.is_mount():
        pytest.skip("the vault is no file system of its own: filling it would fill the host's")
    sandbox = sandboxes()
    before = listed()
    ballast = vault / "ballast"
    free = os.statvfs(vault)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (512 << 20))
    try:
        refusals = [
            api("POST", "/sandboxes", {"templateID": "base", "timeout": 60}),
            api("POST", f"/sandboxes/{sandbox.sandbox_id}/pause"),
        ]
        assert listed() == before
        assert sandbox.commands.run("echo still here").stdout == "still here\n"
    finally:
        ballast.unlink()
    for refusal in refusals:
        assert refusal.status == 507
        missing = re.search(r"(\d+) bytes are missing", refusal.json["message"])
        assert missing and int(missing[1]) > 0, refusal.json
    assert sandbox.pause() is True


def test_a_lost_database_loses_no_paused_sandbox(server, sandboxes):
    sandbox = sandboxes(metadata={"kept": "yes"})
    counter = start_counter(sandbox)
    assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/pause", {"waitDurable": True}).status == 204
    server.stop()
    for file in server.data.glob("torpor.db*"):
        file.unlink()

    # Makes the templates in the vault known again. The keys are gone for good: only their hashes were anywhere.
    assert torpor("setup", "--data-dir", str(server.data), "--yes").returncode == 0
    server.api_key = ""
    server.start()
    os.environ.update(server.environment())

    assert listed()[sandbox.sandbox_id] == SandboxState.PAUSED
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert same.get_info().metadata == {"kept": "yes"}
    assert wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter")["pid"] == counter["pid"]

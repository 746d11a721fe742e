"""The server dies; the sandboxes do not."""

import pytest
from e2b import Sandbox, SandboxState

from support import listed, port, read_counter, start_counter, wait_for

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

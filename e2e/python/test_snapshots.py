"""Snapshots, forks, and pauses that keep the disk alone."""

import time

import pytest
from e2b import Sandbox
from e2b.exceptions import NotFoundException, SandboxException

from support import api, port, read_counter, start_counter, wait_for


def random_bytes(sandbox: Sandbox) -> str:
    return sandbox.commands.run("od -An -N16 -tx1 /dev/urandom").stdout.strip()


@pytest.mark.persistence
def test_a_fork_leaves_the_parent_as_it_was_and_its_children_go_on_from_there(sandboxes):
    parent = sandboxes(timeout=600)
    before = start_counter(parent)
    parent.files.write("/home/user/note", "from the parent")
    info = parent.get_info()

    children = [sandboxes.own(child) for child in parent.fork(timeout=300, count=3)]

    after = parent.get_info()
    assert (after.sandbox_id, after.end_at) == (info.sandbox_id, info.end_at)
    ids = {parent.sandbox_id, *(child.sandbox_id for child in children)}
    assert len(ids) == 4
    for child in children:
        answer = wait_for(lambda: read_counter(child.sandbox_id), "the counter in the child")
        assert answer["pid"] == before["pid"] and answer["count"] >= before["count"]
        assert child.files.read("/home/user/note") == "from the parent"
        assert child.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == child.sandbox_id
    assert len({random_bytes(sandbox) for sandbox in [parent, *children]}) == 4
    # Each goes its own way.
    children[0].files.write("/home/user/note", "changed")
    assert children[1].files.read("/home/user/note") == "from the parent"
    assert parent.files.read("/home/user/note") == "from the parent"


def test_a_forks_child_outlives_its_parent_and_many_pauses(sandboxes):
    parent = sandboxes(timeout=600)
    start_counter(parent)
    child = sandboxes.own(parent.fork(timeout=300)[0])
    parent.kill()
    for _ in range(3):
        counted = wait_for(lambda: read_counter(child.sandbox_id), "the counter in the child")
        assert api("POST", f"/sandboxes/{child.sandbox_id}/pause", {"waitDurable": True}).status == 204
        child.connect(timeout=300)
        answer = wait_for(lambda: read_counter(child.sandbox_id), "the counter after a pause")
        assert answer["pid"] == counted["pid"] and answer["count"] >= counted["count"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"count": 0}, 400), ({"count": 101}, 400), ({"timeout": 0}, 400), ({"timeout": -1}, 400)],
)
def test_a_fork_that_cannot_be_is_refused(sandbox, body, status):
    answer = api("POST", f"/sandboxes/{sandbox.sandbox_id}/fork", body)
    assert (answer.status, answer.json["code"]) == (status, status)


def test_a_paused_sandbox_is_neither_forked_nor_snapshotted(sandbox):
    sandbox.pause()
    assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/fork", {}).status == 409
    assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/snapshots", {}).status == 404


@pytest.mark.persistence
def test_sandboxes_made_from_a_snapshot_go_on_where_it_was_taken(sandboxes):
    source = sandboxes(timeout=600, envs={"COLOUR": "blue"})
    counted = start_counter(source)
    snapshot = source.create_snapshot()
    assert source.is_running()
    source.kill()

    made = [sandboxes(template=snapshot.snapshot_id, timeout=300) for _ in range(2)]
    for sandbox in made:
        answer = wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter in a sandbox of the snapshot")
        assert answer["pid"] == counted["pid"] and answer["count"] >= counted["count"]
        assert sandbox.commands.run("echo $COLOUR").stdout.strip() == "blue"

    with pytest.raises(SandboxException, match="in use"):
        Sandbox.delete_snapshot(snapshot.snapshot_id)
    for sandbox in made:
        sandbox.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    with pytest.raises((NotFoundException, SandboxException)):
        Sandbox.create(snapshot.snapshot_id)


def test_a_name_is_taken_again_and_keeps_its_id(sandboxes):
    source = sandboxes(timeout=600)
    source.files.write("/home/user/version", "1")
    first = source.create_snapshot(name="kept")
    source.files.write("/home/user/version", "2")
    second = source.create_snapshot(name="kept")
    try:
        assert first.snapshot_id == second.snapshot_id and "kept" in first.names[0]
        listed = api("GET", "/snapshots?name=kept").json
        assert [snapshot["snapshotID"] for snapshot in listed] == [first.snapshot_id]
        made = sandboxes(template=first.snapshot_id)
        assert made.files.read("/home/user/version") == "2"
        made.kill()
    finally:
        Sandbox.delete_snapshot(first.snapshot_id)


def test_a_snapshot_cannot_have_any_name(sandbox):
    for name in ["Big", "a b", "base", "x:y z", "someone-else/x"]:
        answer = api("POST", f"/sandboxes/{sandbox.sandbox_id}/snapshots", {"name": name})
        assert (answer.status, answer.json["code"]) == (400, 400), name


def test_a_pause_without_memory_keeps_files_and_boots(sandboxes):
    sandbox = sandboxes(timeout=600)
    boot = "cat /proc/sys/kernel/random/boot_id"
    booted = sandbox.commands.run(boot).stdout
    # Not flushed by the writer: the pause has to.
    sandbox.commands.run("head -c 3000000 /dev/urandom > kept; sha256sum kept > sum")
    running = sandbox.commands.run("sleep 1000", background=True)

    assert sandbox.pause(keep_memory=False) is True
    detail = api("GET", f"/sandboxes/{sandbox.sandbox_id}").json
    assert (detail["state"], detail["pauseMode"]) == ("paused", "filesystem")
    assert port(sandbox.sandbox_id, 49983, "/health").status == 502

    again = sandbox.connect(timeout=300)
    assert again.sandbox_id == sandbox.sandbox_id
    assert again.commands.run("sha256sum -c sum").exit_code == 0
    assert again.commands.run(boot).stdout != booted
    assert again.commands.run("whoami; pwd").stdout == "user\n/home/user\n"
    assert running.pid not in [process.pid for process in again.commands.list()]
    # Booting takes seconds; the guest is told the time of when it listens.
    before = time.time()
    guest = float(again.commands.run("date +%s.%N").stdout)
    assert before - 1 <= guest <= time.time() + 1

    # What was booted is paused with memory as anything else is.
    kept = again.commands.run("sleep 1000", background=True)
    again.pause()
    again.connect(timeout=300)
    assert kept.pid in [process.pid for process in again.commands.list()]


def test_a_deadline_may_pause_without_memory(sandboxes):
    created = api(
        "POST",
        "/v2/sandboxes",
        {"templateID": "base", "timeout": 600, "autoPause": True, "autoPauseMemory": False},
    )
    assert created.status == 201
    sandbox = sandboxes.own(Sandbox.connect(created.json["sandboxID"], timeout=600))
    sandbox.files.write("/home/user/note", "kept")
    sandbox.set_timeout(0)
    detail = wait_for(
        lambda: (found := api("GET", f"/sandboxes/{sandbox.sandbox_id}").json)["state"] == "paused" and found,
        "the pause at the deadline",
    )
    assert detail["pauseMode"] == "filesystem"
    assert sandbox.connect(timeout=300).files.read("/home/user/note") == "kept"


@pytest.mark.owns_server
def test_snapshots_and_children_of_forks_outlive_a_killed_server(server, sandboxes):
    source = sandboxes(timeout=600)
    counted = start_counter(source)
    snapshot = source.create_snapshot(name="outlives")
    child = sandboxes.own(source.fork(timeout=600)[0])
    try:
        server.kill()
        server.start()
        assert api("GET", "/snapshots?name=outlives").json[0]["snapshotID"] == snapshot.snapshot_id
        made = sandboxes(template=snapshot.snapshot_id, timeout=300)
        for sandbox in [child, made]:
            answer = wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter")
            assert answer["pid"] == counted["pid"]
        # The child has to be saved on top of what the fork left.
        assert api("POST", f"/sandboxes/{child.sandbox_id}/pause", {"waitDurable": True}).status == 204
        child.connect(timeout=300)
        assert wait_for(lambda: read_counter(child.sandbox_id), "the counter")["pid"] == counted["pid"]
        made.kill()
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id)

"""What was saved elsewhere, or by another Torpor: refused at once, with the way out, and nothing is lost (docs/compatibility.md)."""

import json
import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2b import Sandbox, SandboxState

from server import torpor
from support import api, listed, read_counter, start_counter, wait_for

pytestmark = pytest.mark.owns_server

# A machine that was started in vain would take longer, and so would one that was waited for.
AT_ONCE_SECONDS = 2.0


def manifest_of(server, sandbox_id: str) -> Path:
    """The manifest of a sandbox's pause."""
    wait_for(lambda: api("GET", f"/sandboxes/{sandbox_id}").json["durable"], "the pause to be durable")
    for path in (server.data / "vault" / "snapshots").glob("*/manifest.json"):
        owner = json.loads(path.read_text())["subject"].get("sandbox")
        if owner and owner["id"] == sandbox_id:
            return path
    raise AssertionError(f"{sandbox_id} has no pause in the vault")


@contextmanager
def changed(path: Path, change):
    """A file of JSON with something else in it, for a while."""
    before = path.read_text()
    content = json.loads(before)
    change(content)
    path.write_text(json.dumps(content))
    try:
        yield
    finally:
        if path.exists():  # else a later pause has replaced it
            path.write_text(before)


def resume(sandbox_id: str, **body):
    return api("POST", f"/v2/sandboxes/{sandbox_id}/connect", {"timeout": 300, **body})


def machine(field: str, value):
    return lambda manifest: manifest["machine"].update({field: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (machine("qemu_version", "9.2.1"), "QEMU version is '9.2.1'"),
        (machine("cpu_model", "Skylake-Server"), "CPU model is 'Skylake-Server'"),
        (machine("accelerator", "kvm"), "accelerator is 'kvm'"),
        (machine("tsc_khz", 1_000_000), "time stamp counter is '1000000 kHz'"),
        (machine("machine_type", "q35"), "machine type is 'q35'"),
        (lambda m: m.update(format={"major": 2, "minor": 3}, written_by="7.1.0"), "upgrade Torpor to 7.1.0 or newer"),
    ],
    ids=["qemu", "cpu", "accelerator", "clock", "machine", "format"],
)
def test_a_pause_that_does_not_fit_is_refused_at_once_and_stays_whole(server, sandboxes, change, named):
    sandbox = sandboxes()
    if "kvm" in named and json.loads((server.data / "accelerator.json").read_text()).get("accelerator") == "kvm":
        pytest.skip("here that fits")
    counter = start_counter(sandbox)
    sandbox.pause()
    with changed(manifest_of(server, sandbox.sandbox_id), change):
        asked = time.monotonic()
        refused = resume(sandbox.sandbox_id)
        took = time.monotonic() - asked
        assert (refused.status, refused.json["error_code"]) == (422, "snapshot_does_not_fit"), refused.body
        assert named in refused.json["message"]
        assert took < AT_ONCE_SECONDS
        assert listed()[sandbox.sandbox_id] == SandboxState.PAUSED
        # Another server comes to the same.
        server.kill()
        server.start()
        assert listed()[sandbox.sandbox_id] == SandboxState.PAUSED
        assert resume(sandbox.sandbox_id).status == 422
    assert resume(sandbox.sandbox_id).status == 201
    assert wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter")["pid"] == counter["pid"]


def test_a_pause_that_does_not_fit_can_be_booted_and_goes_on_from_there(server, sandboxes):
    sandbox = sandboxes(metadata={"kept": "yes"})
    start_counter(sandbox)
    sandbox.files.write("note.txt", "kept")
    sandbox.commands.run("sync")
    sandbox.pause()
    with changed(manifest_of(server, sandbox.sandbox_id), machine("qemu_version", "9.2.1")):
        message = resume(sandbox.sandbox_id).json["message"]
        assert "--boot" in message and '"memory": false' in message
        assert resume(sandbox.sandbox_id, memory=False).status == 201
        wait_for(lambda: sandbox.is_running(), "the booted sandbox")
        assert sandbox.files.read("note.txt") == "kept"
        assert read_counter(sandbox.sandbox_id) is None
        assert resume(sandbox.sandbox_id, memory=False).status == 200, "a running one is left as it is"
        # It is a sandbox like any other: its memory is kept by the next pause, and all of that is its own.
        counter = start_counter(sandbox)
        sandbox.pause()
        manifest_of(server, sandbox.sandbox_id)
    assert resume(sandbox.sandbox_id).status == 201
    assert wait_for(lambda: read_counter(sandbox.sandbox_id), "the counter")["pid"] == counter["pid"]
    assert sandbox.files.read("note.txt") == "kept"
    assert api("GET", f"/sandboxes/{sandbox.sandbox_id}").json["metadata"] == {"kept": "yes"}


def test_a_pause_is_booted_from_the_command_line_and_before_it_is_durable(server, sandboxes):
    sandbox = sandboxes()
    sandbox.files.write("note.txt", "kept")
    sandbox.commands.run("sync")
    sandbox.pause()
    endpoint = ["--url", server.url, "--api-key", server.api_key]
    booted = torpor("sandbox", *endpoint, "resume", "--boot", sandbox.sandbox_id)
    assert booted.returncode == 0, booted.stderr
    wait_for(lambda: sandbox.is_running(), "the booted sandbox")
    assert sandbox.files.read("note.txt") == "kept"
    assert float(sandbox.commands.run("cut -d ' ' -f 1 /proc/uptime").stdout) < 120


def test_a_pause_whose_kernel_is_missing_waits_for_it(server, sandboxes):
    sandbox = sandboxes()
    sandbox.files.write("note.txt", "kept")
    assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/pause", {"memory": False}).status == 204
    kernel = json.loads(manifest_of(server, sandbox.sandbox_id).read_text())["machine"]["kernel_blake3"]
    there, away = server.data / "kernels" / kernel, server.data / "kernel-away"
    there.rename(away)
    try:
        refused = resume(sandbox.sandbox_id)
    finally:
        away.rename(there)
    assert (refused.status, refused.json["error_code"]) == (422, "snapshot_does_not_fit"), refused.body
    assert kernel in refused.json["message"] and "copy the directory of that name" in refused.json["message"]
    assert listed()[sandbox.sandbox_id] == SandboxState.PAUSED
    assert resume(sandbox.sandbox_id).status == 201
    wait_for(lambda: sandbox.is_running(), "the booted sandbox")
    assert sandbox.files.read("note.txt") == "kept"


def refused_start(server) -> str:
    """What a server says that does not start."""
    refused = torpor("serve", "--data-dir", str(server.data), "--listen", f"127.0.0.1:{server.port}", timeout=60)
    assert refused.returncode != 0
    return refused.stderr


def test_what_a_newer_torpor_left_is_refused_and_left_alone(server, sandboxes):
    running, paused = sandboxes(), sandboxes()
    counter = start_counter(running)
    paused.pause()
    manifest_of(server, paused.sandbox_id)
    records = Path("/run/torpor").glob("*/machines/*/record.json")
    record = next(path for path in records if running.sandbox_id in path.read_text())
    server.stop()

    with changed(record, lambda content: content.update(version=2)):
        assert "was started by a newer Torpor" in refused_start(server)

    database = server.data / "torpor.db"
    with sqlite3.connect(database) as connection:
        known = connection.execute("PRAGMA user_version").fetchone()[0]
    set_schema(database, known + 1)
    before = database.read_bytes()
    said = refused_start(server)
    assert f"has schema version {known + 1}, this Torpor knows up to {known}" in said
    assert database.read_bytes() == before
    set_schema(database, known)

    version = server.data / "vault" / "VERSION"
    before = version.read_text()
    version.write_text("torpor-vault 2.0\n")
    said = refused_start(server)
    assert "torpor-vault 2.0" in said and "upgrade Torpor" in said
    version.write_text("torpor-vault 1.9\n")  # which an older Torpor may overlook
    server.start()
    version.write_text(before)

    assert wait_for(lambda: read_counter(running.sandbox_id), "the counter")["pid"] == counter["pid"]
    assert listed()[paused.sandbox_id] == SandboxState.PAUSED
    assert resume(paused.sandbox_id).status == 201


def set_schema(database: Path, version: int) -> None:
    connection = sqlite3.connect(database)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()

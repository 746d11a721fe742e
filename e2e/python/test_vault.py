"""What is in the vault is what was saved; and what the database knew is in the vault."""

import json
import os

import pytest
from e2b import Sandbox, SandboxState

from server import torpor
from support import api, listed

pytestmark = pytest.mark.owns_server


def verify(server, *ids: str) -> tuple[int, dict]:
    """The exit code, and what became of each snapshot by its id."""
    done = torpor("vault", "verify", "--data-dir", str(server.data), "--json", *ids)
    assert done.stdout, done.stderr
    return done.returncode, {verdict["id"]: verdict for verdict in json.loads(done.stdout)}


def pause(sandbox: Sandbox) -> str:
    """Pauses, and returns the id of the snapshot in the vault."""
    before = {entry["fields"].get("snapshot") for entry in log(sandbox)}
    assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/pause?waitDurable=true").status == 204
    while True:
        new = {entry["fields"].get("snapshot") for entry in log(sandbox)} - before - {None}
        if new:
            return new.pop()


def log(sandbox: Sandbox) -> list[dict]:
    return api("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs").json["logs"]


def test_every_snapshot_verifies_beside_a_running_server_and_a_flipped_bit_is_found(server, sandboxes):
    sandbox = sandboxes()
    snapshot = pause(sandbox)
    code, verdicts = verify(server)
    assert code == 0, verdicts
    assert verdicts[snapshot]["of"] == f"sandbox {sandbox.sandbox_id}"
    assert "template base" in [verdict["of"] for verdict in verdicts.values()]
    assert all(verdict["outcome"] == "ok" for verdict in verdicts.values()), verdicts

    memory = server.data / "vault" / "snapshots" / snapshot / "memory"
    with memory.open("r+b") as file:
        at = file.seek(os.lseek(file.fileno(), 100 << 20, os.SEEK_DATA))
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    code, verdicts = verify(server, snapshot)
    assert code == 1
    assert list(verdicts) == [snapshot] and verdicts[snapshot]["outcome"] == "damaged"
    assert f"byte {at >> 20 << 20}" in verdicts[snapshot]["why"]

    sandbox.kill()
    code, verdicts = verify(server, snapshot)
    assert (code, verdicts[snapshot]["outcome"]) == (0, "gone")


def test_a_lost_database_is_made_again_from_the_manifests(server, sandboxes):
    sandbox = sandboxes(metadata={"kept": "yes"})
    sandbox.files.write("note.txt", "kept")
    taken = api("POST", f"/sandboxes/{sandbox.sandbox_id}/snapshots", {"name": "kept"})
    assert taken.status == 201, taken.body
    pause(sandbox)
    rebuild = ["vault", "rebuild-index", "--data-dir", str(server.data), "--json"]
    held = torpor(*rebuild)
    assert held.returncode == 1 and "another torpor" in held.stderr

    server.stop()
    for file in server.data.glob("torpor.db*"):
        file.unlink()
    done = torpor(*rebuild)
    assert done.returncode == 0, done.stderr
    made = {(row["kind"], row["id"]) for row in json.loads(done.stdout)["made"]}
    assert ("sandbox", sandbox.sandbox_id) in made
    assert {kind for kind, _ in made} == {"template", "sandbox", "snapshot"}
    again = torpor(*rebuild)
    assert json.loads(again.stdout)["made"] == []

    # The keys are gone for good: only their hashes were anywhere.
    server.api_key = ""
    server.start()
    os.environ.update(server.environment())
    assert listed()[sandbox.sandbox_id] == SandboxState.PAUSED
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert same.files.read("note.txt") == "kept"
    assert same.get_info().metadata == {"kept": "yes"}
    child = sandboxes(template="default/kept:default")
    assert child.files.read("note.txt") == "kept"
    assert sandboxes().commands.run("echo from the template").stdout == "from the template\n"
    child.kill()
    assert api("DELETE", "/templates/default%2Fkept").status == 204

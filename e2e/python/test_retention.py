"""What nobody uses is kept as long as was said, and no longer."""

import json
import os
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, timezone

import pytest
from e2b import Sandbox, SandboxState

from server import torpor
from support import api, http, listed, wait_for

pytestmark = pytest.mark.owns_server


def created(sandboxes, **fields) -> Sandbox:
    """A sandbox made by a plain request, for what the SDK has no argument."""
    made = api("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 600, **fields})
    assert made.status == 201, made.body
    return sandboxes.own(Sandbox.connect(made.json["sandboxID"], timeout=600))


def paused(sandbox: Sandbox) -> Sandbox:
    assert api("POST", f"/sandboxes/{sandbox.sandbox_id}/pause", {"waitDurable": True}).status == 204
    return sandbox


def age(server, sandbox: Sandbox, days: int) -> None:
    """Moves a pause into the past, in the database of a server that is stopped."""
    with closing(sqlite3.connect(server.data / "torpor.db")) as database:
        (text,) = database.execute("SELECT record FROM sandboxes WHERE id = ?", [sandbox.sandbox_id]).fetchone()
        record = json.loads(text)
        record["end_at"] = (datetime.now(timezone.utc) - timedelta(days=days)).isoformat().replace("+00:00", "Z")
        database.execute("UPDATE sandboxes SET record = ? WHERE id = ?", [json.dumps(record), sandbox.sandbox_id])
        database.commit()


def gc(server, *arguments: str) -> dict:
    # Without the suite's key: it is for who has the node's own.
    environment = {name: os.environ.pop(name) for name in ["E2B_API_KEY"]}
    try:
        done = torpor("gc", "--data-dir", str(server.data), "--url", server.url, "--json", *arguments)
    finally:
        os.environ.update(environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sandbox_that_was_paused_for_long_enough_is_removed_and_the_others_are_not(server, sandboxes):
    old, young, for_ever = (paused(created(sandboxes, **more)) for more in ({}, {}, {"retentionDays": 0}))
    until = api("GET", f"/sandboxes/{old.sandbox_id}").json["keptUntil"]
    left = datetime.fromisoformat(until.replace("Z", "+00:00")) - datetime.now(timezone.utc)
    assert timedelta(days=29) < left <= timedelta(days=30)
    detail = api("GET", f"/sandboxes/{for_ever.sandbox_id}").json
    assert detail["retentionDays"] == 0 and "keptUntil" not in detail
    assert gc(server, "--dry-run")["removals"] == []

    server.stop()
    age(server, old, 31)
    age(server, young, 29)
    age(server, for_ever, 4000)
    server.start()
    wait_for(lambda: old.sandbox_id not in listed(), "the server to remove it by itself")
    assert {young.sandbox_id, for_ever.sandbox_id} <= listed().keys()
    reason = "as long as the server keeps it"
    wait_for(lambda: reason in server.log.read_text(errors="replace"), "the reason in the log")


def test_a_team_keeps_its_sandboxes_for_as_long_as_it_likes_and_gc_says_why(server, sandboxes):
    sandbox = paused(created(sandboxes))
    server.stop()
    age(server, sandbox, 8)
    server.start()
    limit = ["team", "set-limits", "default", "--data-dir", str(server.data), "--retention-days"]
    assert torpor(*limit, "7").returncode == 0
    try:
        (removal,) = gc(server, "--dry-run")["removals"]
        assert (removal["id"], removal["keptDays"], removal["saidBy"]) == (sandbox.sandbox_id, 7, "team")
        assert removal["ownBytes"] > 0
        assert sandbox.sandbox_id in listed()
        done = gc(server)
        assert [removed["id"] for removed in done["removed"]] == [sandbox.sandbox_id]
        assert sandbox.sandbox_id not in listed()
    finally:
        assert torpor(*limit, "default").returncode == 0


def test_gc_is_not_for_a_teams_key_and_says_what_to_do_without_a_server(server):
    assert api("POST", "/admin/gc").status == 403
    server.stop()
    try:
        refused = torpor("gc", "--data-dir", str(server.data), "--url", server.url)
    finally:
        server.start()
    assert refused.returncode == 1
    assert "torpor serve" in refused.stderr, refused.stderr


def used_bytes(server) -> int:
    space = os.statvfs(server.data / "vault")
    return (space.f_blocks - space.f_bavail) * space.f_frsize


def test_a_sandbox_that_cannot_be_paused_at_its_deadline_for_lack_of_room_runs_on_and_says_why(server, sandboxes):
    if not (server.data / "vault").is_mount():
        pytest.skip("what the vault takes up is not known at once here")
    if os.environ.get("TORPOR_VAULT_MEMORY") == "shared":
        pytest.skip("what a machine with shared memory has written is in the vault already: a pause takes no more")
    sandbox = created(sandboxes, autoPause=True)
    # More than the budget leaves, in a process that goes on holding it.
    hold = "import os,time; held = os.urandom(150 << 20); print('held', flush=True); time.sleep(3600)"
    process = sandbox.commands.run(f'python3 -c "{hold}"', background=True)
    assert next(iter(process))[0] == "held\n"
    process.disconnect()
    server.stop()
    server.settings = ["--vault-budget", str(used_bytes(server) + (90 << 20))]
    server.start()
    try:
        refused = api("POST", f"/sandboxes/{sandbox.sandbox_id}/pause")
        assert refused.status == 507 and "vault_budget" in refused.json["message"], refused.body
        forked = api("POST", f"/sandboxes/{sandbox.sandbox_id}/fork", {"count": 1})
        assert forked.status == 507, forked.body
        sandbox.set_timeout(1)
        detail = wait_for(
            lambda: (found := api("GET", f"/sandboxes/{sandbox.sandbox_id}").json).get("heldUp") and found,
            "the deadline to be missed",
        )
        assert detail["state"] == "running" and "bytes are missing" in detail["heldUp"]
        assert sandbox.commands.run("echo still here").stdout == "still here\n"
        logs = api("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs").json["logs"]
        assert any("could not be paused" in entry["message"] for entry in logs), logs
    finally:
        server.stop()
        server.settings = []
        server.start()
    wait_for(lambda: listed().get(sandbox.sandbox_id) == SandboxState.PAUSED, "the pause that was tried again")
    # Its next run has a deadline of its own.
    sandbox.connect(timeout=600)
    for number in range(5):
        assert sandbox.commands.run(f"echo {number}").stdout == f"{number}\n"
    detail = api("GET", f"/sandboxes/{sandbox.sandbox_id}").json
    assert detail["state"] == "running" and "heldUp" not in detail


@pytest.mark.parametrize("how", ["query", "header", "body"])
def test_a_pause_can_be_waited_for_until_it_would_survive_a_power_cut(sandboxes, how):
    sandbox = sandboxes()
    path, headers, body = f"/sandboxes/{sandbox.sandbox_id}/pause", {"X-API-Key": os.environ["E2B_API_KEY"]}, None
    if how == "query":
        path += "?waitDurable=true"
    elif how == "header":
        headers["Torpor-Wait-Durable"] = "true"
    else:
        body = b'{"waitDurable": true}'
    assert http("POST", os.environ["E2B_API_URL"] + path, body, headers).status == 204
    assert api("GET", f"/sandboxes/{sandbox.sandbox_id}").json["durable"] is True

    def told():
        logs = api("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs").json["logs"]
        return [entry for entry in logs if entry["message"] == "the pause is durable"]

    (entry,) = wait_for(told, "the entry in the log")
    assert entry["fields"]["snapshot"].startswith("s") and float(entry["fields"]["seconds"]) >= 0
    assert entry["fields"]["logger"] == "server"

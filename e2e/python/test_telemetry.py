"""Logs and metrics of sandboxes, through pauses and restarts."""

import json
from datetime import datetime, timedelta, timezone

import pytest
from e2b import Sandbox
from server import torpor

from support import api, port, wait_for


def entries(sandbox_id: str, query: str = "") -> list[dict]:
    answer = api("GET", f"/v2/sandboxes/{sandbox_id}/logs?{query}")
    assert answer.status == 200, answer.body
    return answer.json["logs"]


def messages(sandbox_id: str, query: str = "") -> list[str]:
    return [entry["message"] for entry in entries(sandbox_id, query)]


def test_metrics_are_there_soon_after_a_create_and_stay_through_a_pause(sandbox):
    points = wait_for(sandbox.get_metrics, "the first metrics")
    assert points[0].cpu_count >= 1
    assert 0 < points[0].mem_used <= points[0].mem_total
    assert 0 < points[0].disk_used < points[0].disk_total
    wait_for(lambda: len(sandbox.get_metrics()) > 1, "metrics that go on")
    future = datetime.now(timezone.utc) + timedelta(hours=1)
    assert Sandbox.get_metrics(sandbox.sandbox_id, start=future) == []
    sandbox.pause()
    assert Sandbox.get_metrics(sandbox.sandbox_id)[0].timestamp == points[0].timestamp
    newest = api("GET", f"/sandboxes/metrics?sandbox_ids={sandbox.sandbox_id},i0").json["sandboxes"]
    assert list(newest) == [sandbox.sandbox_id]


def test_what_processes_print_is_in_the_log_with_level_and_origin(sandbox):
    result = sandbox.commands.run("echo to-stdout; echo to-stderr >&2; printf unfinished")
    assert result.exit_code == 0
    wait_for(lambda: "process ended: exit status 0" in messages(sandbox.sandbox_id), "the process in the log")
    found = {entry["message"]: entry for entry in entries(sandbox.sandbox_id)}
    assert found["to-stdout"]["level"] == "info" and found["to-stdout"]["fields"]["stream"] == "stdout"
    assert found["to-stderr"]["level"] == "error" and found["to-stderr"]["fields"]["logger"] == "process"
    assert found["unfinished"]["fields"]["pid"] == found["process started"]["fields"]["pid"]
    assert messages(sandbox.sandbox_id, "level=error") == ["to-stderr"]
    assert messages(sandbox.sandbox_id, "search=to-std") == ["to-stdout", "to-stderr"]
    assert messages(sandbox.sandbox_id, "direction=backward&limit=1") == ["process ended: exit status 0"]
    old = api("GET", f"/sandboxes/{sandbox.sandbox_id}/logs").json["logs"]
    lines = [json.loads(entry["line"]) for entry in old]
    assert {"level", "logger", "message"} <= lines[0].keys()
    assert "to-stdout" in [line["message"] for line in lines]


@pytest.mark.owns_server
def test_no_entry_is_lost_or_repeated_by_pauses_and_a_killed_server(server, sandbox):
    sandbox.commands.run(
        "for i in $(seq 1 100000); do echo tick $i; sleep 0.2; done", background=True, timeout=0
    )

    def ticks() -> list[str]:
        return [message for message in messages(sandbox.sandbox_id) if message.startswith("tick ")]

    def grown_by(count: int):
        before = len(ticks())
        return wait_for(lambda: ticks() if len(ticks()) >= before + count else None, f"{count} more ticks")

    grown_by(5)
    sandbox.pause()
    at_pause = ticks()
    assert at_pause, "a paused sandbox keeps its log"
    sandbox.connect()
    grown_by(5)
    server.kill()
    server.start()
    seen = grown_by(5)
    assert seen == [f"tick {n}" for n in range(1, len(seen) + 1)]
    resumes = [message for message in messages(sandbox.sandbox_id) if message.startswith("sandbox ")]
    assert resumes[:2] == ["sandbox started", "sandbox resumed"]


def test_a_flood_of_output_slows_nothing_down_and_is_cut_in_the_log(sandbox):
    result = sandbox.commands.run("yes 0123456789012345678901234567890123456789 | head -c 4000000 | tail -c 10")
    assert result.exit_code == 0
    flood = sandbox.commands.run("yes 0123456789012345678901234567890123456789 | head -c 4000000; echo; echo the end")
    assert len(flood.stdout) > 4_000_000
    wait_for(lambda: messages(sandbox.sandbox_id, "search=were%20not%20logged"), "the log to say what it left out")


def test_a_killed_sandbox_has_neither_logs_nor_metrics(server, sandboxes):
    sandbox = sandboxes()
    wait_for(sandbox.get_metrics, "the first metrics")
    sandbox.kill()
    for path in ("metrics", "logs"):
        assert api("GET", f"/sandboxes/{sandbox.sandbox_id}/{path}").status == 404
    if server is not None:
        assert not list((server.data / "logs").glob(f"{sandbox.sandbox_id}*"))


def test_the_hosts_own_endpoint_of_the_agent_is_closed_to_clients(sandbox):
    for path in ("/telemetry", "//telemetry", "/%74elemetry"):
        assert port(sandbox.sandbox_id, 49983, path).status == 404
    inside = sandbox.commands.run("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:49983/telemetry", user="root")
    assert inside.stdout in ("401", "403")


@pytest.mark.owns_server
def test_the_command_line_prints_logs_and_metrics(server, sandbox):
    sandbox.commands.run("echo hello from inside")
    wait_for(lambda: "hello from inside" in messages(sandbox.sandbox_id), "the log")
    wait_for(sandbox.get_metrics, "the first metrics")
    options = ("--url", server.url, "--api-key", server.api_key)
    logs = torpor("sandbox", "logs", sandbox.sandbox_id, *options)
    assert logs.returncode == 0 and "INFO  process[" in logs.stdout and "hello from inside" in logs.stdout
    metrics = torpor("sandbox", "metrics", sandbox.sandbox_id, "--json", *options)
    assert json.loads(metrics.stdout.splitlines()[0])["memTotal"] > 0

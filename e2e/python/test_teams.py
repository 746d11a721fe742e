"""Teams: their keys, their sandboxes, their limits."""

import json
import os
import uuid

import pytest
from e2b import NotFoundException, RateLimitException, Sandbox, SandboxException
from server import torpor

from support import api, http, together

pytestmark = pytest.mark.owns_server


def new_team(server, *limits: str) -> str:
    """Makes a team and returns a key of it."""
    name = f"team-{uuid.uuid4().hex[:8]}"
    made = torpor("team", "create", name, *limits, "--json", "--data-dir", str(server.data))
    assert made.returncode == 0, made.stderr
    key = torpor("key", "create", "--team", name, "--json", "--data-dir", str(server.data))
    assert json.loads(key.stdout)["team"] == name
    return json.loads(key.stdout)["key"]


def test_one_team_neither_sees_nor_touches_anothers_sandboxes(server, sandbox):
    other = new_team(server)
    assert Sandbox.list(api_key=other).next_items() == []
    for act in (Sandbox.connect, Sandbox.get_info):
        with pytest.raises(NotFoundException):
            act(sandbox.sandbox_id, api_key=other)
    assert Sandbox.kill(sandbox.sandbox_id, api_key=other) is False
    for method, path in [
        ("GET", "metrics"),
        ("GET", "logs"),
        ("POST", "pause"),
        ("POST", "resume"),
        ("POST", "fork"),
        ("POST", "snapshots"),
    ]:
        answer = api(method, f"/sandboxes/{sandbox.sandbox_id}/{path}", {} if method == "POST" else None, key=other)
        assert answer.status == 404, (path, answer.body)
    assert sandbox.commands.run("echo untouched").stdout == "untouched\n"


def test_a_team_at_its_limit_is_told_so_and_a_pause_makes_room(server):
    key = new_team(server, "--max-running", "2")

    def create(_):
        return api("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 300}, key=key)

    answers = together(5, create)
    made = [answer.json["sandboxID"] for answer in answers if answer.status == 201]
    refused = [answer for answer in answers if answer.status != 201]
    try:
        assert len(made) == 2, "however many creates come at once"
        assert all(answer.status == 429 and answer.json["code"] == 429 for answer in refused), refused
        assert Sandbox.pause(made[0], api_key=key)
        third = create(0)
        assert third.status == 201, third.body
        made.append(third.json["sandboxID"])
        connect = api("POST", f"/v2/sandboxes/{made[0]}/connect", {}, key=key)
        assert connect.status == 429, connect.body
        resume = api("POST", f"/sandboxes/{made[0]}/resume", {"timeout": 60}, key=key)
        assert resume.status == 429, resume.body
        assert Sandbox.get_info(made[0], api_key=key).state.value == "paused"
        assert Sandbox.kill(made[1], api_key=key)
        assert api("POST", f"/v2/sandboxes/{made[0]}/connect", {}, key=key).status == 201
    finally:
        for sandbox_id in made:
            Sandbox.kill(sandbox_id, api_key=key)


def test_a_create_that_fails_gives_its_place_back(server):
    key = new_team(server, "--max-running", "1")
    for _ in range(3):
        assert api("POST", "/v2/sandboxes", {"templateID": "missing"}, key=key).status == 404
    made = api("POST", "/v2/sandboxes", {"templateID": "base"}, key=key)
    assert made.status == 201, made.body
    Sandbox.kill(made.json["sandboxID"], api_key=key)


def test_a_timeout_over_the_teams_longest_is_refused_in_the_protocols_words(server):
    key = new_team(server, "--max-timeout-hours", "1")
    refused = api("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 3601}, key=key)
    assert (refused.status, refused.json["message"]) == (400, "Timeout cannot be greater than 1 hours")
    refused = api("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 0}, key=key)
    assert (refused.status, refused.json["message"]) == (400, "Timeout must be greater than 0")


def test_a_limit_holds_from_the_next_request_on(server):
    key = new_team(server, "--max-running", "0")
    with pytest.raises((RateLimitException, SandboxException)):
        Sandbox.create(api_key=key, request_timeout=30)
    teams = json.loads(torpor("team", "list", "--json", "--data-dir", str(server.data)).stdout)
    name = api("GET", "/teams", key=key).json[0]["name"]
    assert [team["maxRunning"] for team in teams if team["name"] == name] == [0]
    changed = torpor("team", "set-limits", name, "--max-running", "default", "--data-dir", str(server.data))
    assert changed.returncode == 0, changed.stderr
    with Sandbox.create(api_key=key):
        pass


def test_the_cli_learns_which_team_it_acts_for(server):
    teams = api("GET", "/teams").json
    assert [(team["name"], team["isDefault"]) for team in teams] == [("default", True)]
    assert teams[0]["apiKey"] == os.environ["E2B_API_KEY"]


def test_a_create_sent_again_makes_no_second_sandbox_also_after_a_restart(server):
    key = f"create-{uuid.uuid4()}"
    body = {"templateID": "base", "timeout": 300, "metadata": {"once": key}}

    def create(_):
        headers = {"X-API-Key": os.environ["E2B_API_KEY"], "Idempotency-Key": key, "Content-Type": "application/json"}
        return http("POST", os.environ["E2B_API_URL"] + "/v2/sandboxes", json.dumps(body).encode(), headers)

    answers = together(3, create)
    ids = {answer.json["sandboxID"] for answer in answers}
    try:
        assert [answer.status for answer in answers] == [201] * 3
        assert len(ids) == 1
        server.kill()
        server.start()
        assert create(0).json["sandboxID"] in ids
        body["timeout"] = 60
        assert create(0).status == 409
    finally:
        for sandbox_id in ids:
            Sandbox.kill(sandbox_id)

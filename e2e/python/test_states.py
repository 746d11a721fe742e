"""Every operation in every state a sandbox can be in, with the status the protocol has for it."""

import pytest
from e2b import Sandbox

from support import api, together

# operation: method, path, body, status while running, paused, and after it was killed
TABLE = [
    ("describe", "GET", "/sandboxes/{id}", None, 200, 200, 404),
    ("metrics", "GET", "/sandboxes/{id}/metrics", None, 200, 200, 404),
    ("logs", "GET", "/sandboxes/{id}/logs", None, 200, 200, 404),
    ("second logs", "GET", "/v2/sandboxes/{id}/logs", None, 200, 200, 404),
    ("timeout", "POST", "/sandboxes/{id}/timeout", {"timeout": 600}, 204, 404, 404),
    ("refresh", "POST", "/sandboxes/{id}/refreshes", {"duration": 60}, 204, 404, 404),
    ("network", "PUT", "/sandboxes/{id}/network", {}, 204, 404, 404),
    ("snapshot", "POST", "/sandboxes/{id}/snapshots", {}, 201, 404, 404),
    ("fork", "POST", "/sandboxes/{id}/fork", {"timeout": 15}, 201, 409, 404),
]


def ask(sandbox_id: str, method: str, path: str, body):
    return api(method, path.replace("{id}", sandbox_id), body)


def clean_up(answer) -> None:
    """What a snapshot or a fork made."""
    if answer.status == 201:
        made = answer.json
        for child in made if isinstance(made, list) else []:
            Sandbox.kill(child["sandbox"]["sandboxID"])
        if isinstance(made, dict) and "snapshotID" in made:
            assert Sandbox.delete_snapshot(made["snapshotID"])


@pytest.mark.parametrize("composite", [False, True], ids=["id", "id-clientID"])
def test_each_operation_answers_as_the_state_demands(sandboxes, composite):
    sandbox_id = sandboxes().sandbox_id
    named = f"{sandbox_id}-00000000" if composite else sandbox_id
    for column, change in enumerate(["", "pause", "kill"]):
        if change == "pause":
            assert ask(named, "POST", "/sandboxes/{id}/pause", {}).status == 204
            assert ask(named, "POST", "/sandboxes/{id}/pause", {}).status == 409
        if change == "kill":
            assert ask(named, "DELETE", "/sandboxes/{id}", None).status == 204
            for method, path in [("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")]:
                assert ask(named, method, "/sandboxes/{id}" + path, None).status == 404
            assert ask(named, "POST", "/v2/sandboxes/{id}/connect", {}).status == 404
        for name, method, path, body, *statuses in TABLE:
            answer = ask(named, method, path, body)
            clean_up(answer)
            assert answer.status == statuses[column], (name, change or "running", answer.body)
            if answer.status >= 400:
                assert answer.json["code"] == answer.status


def test_resume_and_connect_answer_as_the_state_demands(sandbox):
    paths = {
        "resume": "/sandboxes/{id}/resume",
        "connect": "/sandboxes/{id}/connect",
        "second connect": "/v2/sandboxes/{id}/connect",
    }
    running = {"resume": 409, "connect": 200, "second connect": 200}
    for name, path in paths.items():
        assert ask(sandbox.sandbox_id, "POST", path, {"timeout": 600}).status == running[name], name
        assert ask(sandbox.sandbox_id, "POST", "/sandboxes/{id}/pause", None).status == 204
        assert ask(sandbox.sandbox_id, "POST", path, {"timeout": 600}).status == 201, name
    assert ask(sandbox.sandbox_id, "POST", paths["connect"], {}).status == 400, "the first version needs a timeout"


def test_those_who_come_while_it_changes_join_or_wait(sandbox):
    def pause(_):
        return ask(sandbox.sandbox_id, "POST", "/sandboxes/{id}/pause", None).status

    def connect(_):
        return ask(sandbox.sandbox_id, "POST", "/v2/sandboxes/{id}/connect", {}).status

    assert set(together(4, pause)) <= {204, 409}, "one pauses, others join or come too late"
    assert set(together(4, connect)) <= {200, 201}
    assert 201 not in [connect(0)]


def test_a_first_version_resume_without_a_timeout_lives_fifteen_seconds(sandbox):
    sandbox.pause()
    assert ask(sandbox.sandbox_id, "POST", "/sandboxes/{id}/resume", {}).status == 201
    info = Sandbox.get_info(sandbox.sandbox_id)
    assert (info.end_at - info.started_at).total_seconds() == 15
    sandbox.set_timeout(600)
    sandbox.pause()
    assert ask(sandbox.sandbox_id, "POST", "/v2/sandboxes/{id}/connect", {}).status == 201
    info = Sandbox.get_info(sandbox.sandbox_id)
    assert (info.end_at - info.started_at).total_seconds() == 300

"""What a user gets for a mistake: the right status, a body the SDKs can read, and a way out in the message."""

import json
import os
import socket
import urllib.error
from urllib.parse import urlsplit

import pytest
from e2b import AuthenticationException, NotFoundException, Sandbox, SandboxException
from server import free_port, torpor

from support import api, listed

MISSING = "i0000000000000000000"
GOOD = {"templateID": "base"}

# name, method, path, body (or raw bytes), status
REFUSED = [
    ("unknown template", "POST", "/v2/sandboxes", {"templateID": "no-such-template"}, 404),
    ("unknown template, first version", "POST", "/sandboxes", {"templateID": "no-such-template"}, 404),
    ("broken JSON", "POST", "/v2/sandboxes", b'{"templateID": "base"', 400),
    ("not an object", "POST", "/v2/sandboxes", b"[]", 400),
    ("empty body", "POST", "/v2/sandboxes", b"", 400),
    ("no template", "POST", "/v2/sandboxes", {}, 400),
    ("template of the wrong type", "POST", "/v2/sandboxes", {"templateID": 7}, 400),
    ("timeout of the wrong type", "POST", "/v2/sandboxes", {**GOOD, "timeout": "soon"}, 400),
    ("timeout of zero", "POST", "/v2/sandboxes", {**GOOD, "timeout": 0}, 400),
    ("negative timeout", "POST", "/v2/sandboxes", {**GOOD, "timeout": -5}, 400),
    ("metadata of the wrong type", "POST", "/v2/sandboxes", {**GOOD, "metadata": {"a": 1}}, 400),
    ("describe unknown", "GET", f"/sandboxes/{MISSING}", None, 404),
    ("kill unknown", "DELETE", f"/sandboxes/{MISSING}", None, 404),
    ("pause unknown", "POST", f"/sandboxes/{MISSING}/pause", None, 404),
    ("resume unknown", "POST", f"/sandboxes/{MISSING}/resume", {"timeout": 60}, 404),
    ("connect unknown", "POST", f"/sandboxes/{MISSING}/connect", {"timeout": 60}, 404),
    ("connect unknown, second version", "POST", f"/v2/sandboxes/{MISSING}/connect", {}, 404),
    ("timeout of unknown", "POST", f"/sandboxes/{MISSING}/timeout", {"timeout": 60}, 404),
    ("refresh of unknown", "POST", f"/sandboxes/{MISSING}/refreshes", {"duration": 60}, 404),
    ("malformed id", "GET", "/sandboxes/NOT_AN_ID!", None, 400),
    ("limit too large", "GET", "/v2/sandboxes?limit=101", None, 400),
    ("limit of zero", "GET", "/v2/sandboxes?limit=0", None, 400),
    ("unknown state", "GET", "/v2/sandboxes?state=sleeping", None, 400),
    ("bad page token", "GET", "/v2/sandboxes?nextToken=garbage", None, 400),
    ("unknown path", "GET", "/no/such/path", None, 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_mistake_is_answered_with_its_status_and_a_readable_body(server, method, path, body, status):
    raw = body if isinstance(body, bytes) else None
    answer = api(method, path, None if raw is not None else body, raw=raw)
    assert answer.status == status, answer.body
    assert answer.json["code"] == status
    assert isinstance(answer.json["message"], str) and answer.json["message"]


def test_an_unknown_template_is_answered_with_those_that_exist(server):
    answer = api("POST", "/v2/sandboxes", {"templateID": "no-such-template"})
    assert "no-such-template" in answer.json["message"]
    assert "base" in answer.json["message"].replace("no-such-template", "")
    with pytest.raises((NotFoundException, SandboxException), match="no-such-template"):
        Sandbox.create(template="no-such-template")


@pytest.mark.parametrize(
    "key", [None, "e2b_" + "0" * 40, "nonsense", "e2b_"], ids=["missing", "wrong", "no key", "short"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/sandboxes"),
        ("POST", "/v2/sandboxes"),
        ("DELETE", f"/sandboxes/{MISSING}"),
        ("POST", f"/sandboxes/{MISSING}/pause"),
        ("POST", f"/v2/sandboxes/{MISSING}/connect"),
    ],
)
def test_without_a_valid_key_nothing_is_done_or_told(server, method, path, key):
    answer = api(method, path, GOOD if path == "/v2/sandboxes" and method == "POST" else None, key=key)
    assert answer.status == 401
    assert answer.json["code"] == 401


def test_a_wrong_key_is_an_authentication_error_in_the_sdk(server):
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)


def test_a_refused_create_leaves_nothing(server):
    before = set(listed())
    for body in ({"templateID": "no-such-template"}, {**GOOD, "timeout": -1}):
        assert api("POST", "/v2/sandboxes", body).status >= 400
    assert set(listed()) == before


def test_fields_this_server_does_not_know_are_tolerated(sandboxes, server):
    answer = api("POST", "/v2/sandboxes", {**GOOD, "timeout": 60, "someday": {"new": True}})
    assert answer.status == 201
    Sandbox.kill(answer.json["sandboxID"])


def test_a_body_far_too_large_is_refused_and_the_server_goes_on(server):
    try:
        answer = api("POST", "/v2/sandboxes", raw=b'{"templateID": "' + b"x" * 20_000_000 + b'"}')
        assert answer.status == 413
    except urllib.error.URLError as cut:
        # The server need not read on once it has refused; then the client may fail to send before it reads the answer.
        assert isinstance(cut.reason, BrokenPipeError | ConnectionResetError)
    assert api("GET", "/v2/sandboxes").status == 200


def test_the_composite_ids_of_old_sdks_are_understood(sandbox):
    created = api("GET", f"/sandboxes/{sandbox.sandbox_id}").json
    assert api("GET", f"/sandboxes/{sandbox.sandbox_id}-{created['clientID']}").status == 200


@pytest.mark.owns_server
def test_a_second_server_on_the_same_data_refuses_and_names_the_first(server):
    second = torpor("serve", "--data-dir", str(server.data), "--listen", f"127.0.0.1:{free_port()}", timeout=60)
    assert second.returncode != 0
    assert str(server.pid) in second.stderr + second.stdout
    assert api("GET", "/v2/sandboxes").status == 200


@pytest.mark.owns_server
def test_a_revoked_key_no_longer_works(server):
    made = json.loads(torpor("key", "create", "--data-dir", str(server.data), "--json").stdout)
    assert api("GET", "/v2/sandboxes", key=made["key"]).status == 200
    assert torpor("key", "revoke", made["id"], "--data-dir", str(server.data)).returncode == 0
    assert api("GET", "/v2/sandboxes", key=made["key"]).status == 401


def test_garbage_on_the_wire_does_not_disturb_others(server):
    address = urlsplit(os.environ["E2B_API_URL"])

    garbage = [b"\x00" * 1000, b"GET / HTTP/9.9\r\n\r\n", b"POST /v2/sandboxes HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"]
    for data in garbage:
        with socket.create_connection((address.hostname, address.port), timeout=10) as wire:
            wire.sendall(data)
    assert api("GET", "/v2/sandboxes").status == 200

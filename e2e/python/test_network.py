"""What sandboxes reach: addresses, names, headers, private ranges; changed live, and kept."""

import json

import pytest
from e2b import Sandbox
from e2b.exceptions import InvalidArgumentException, NotFoundException, SandboxException

from internet import PRIVATE, RESOLVER, SITE, STRANGER, internet

pytestmark = pytest.mark.owns_server

ALL_TRAFFIC = "0.0.0.0/0"
ONLY_API = {"allow_out": ["api.example.test"], "deny_out": [ALL_TRAFFIC]}

# Makes the requests it is given, [scheme, address to connect to, host to ask for], and prints what became of each.
PROBE = """
import http.client, json, socket, ssl, sys
def attempt(scheme, address, host):
    try:
        stream = socket.create_connection((address, 443 if scheme == "https" else 80), timeout=60)
        if scheme == "https":
            stream = ssl.create_default_context().wrap_socket(stream, server_hostname=host)
        connection = http.client.HTTPConnection(host)
        connection.sock = stream
        connection.request("GET", "/", headers={"Host": host})
        answer = json.loads(connection.getresponse().read())
        return answer["here"] + " " + answer["key"]
    except ssl.SSLCertVerificationError:
        return "untrusted"
    except OSError as error:
        return type(error).__name__
print(json.dumps([attempt(*request) for request in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def world(server):
    """The server under test, with an internet; as it was before when the tests are over."""
    with internet() as world:
        server.stop()
        server.settings = ["--resolver", RESOLVER, "--egress-roots", str(world.roots)]
        server.start()
        yield world
        server.stop()
        server.settings = []
        server.start()


def attempts(sandbox, *requests: tuple[str, str, str]) -> list[str]:
    sandbox.files.write("/home/user/probe.py", PROBE)
    result = sandbox.commands.run(f"python3 probe.py '{json.dumps(requests)}'", timeout=300)
    return json.loads(result.stdout)


FAILED = {"ConnectionResetError", "ConnectionRefusedError", "RemoteDisconnected", "BrokenPipeError"}


def assert_only_api_is_reached(world, sandbox) -> None:
    world.seen()
    reached = attempts(
        sandbox,
        ("http", "api.example.test", "api.example.test"),
        ("http", STRANGER, "api.example.test"),
        ("http", SITE, "www.example.test"),
        ("http", STRANGER, "stranger.test"),
        ("https", STRANGER, "www.example.test"),
        ("http", "www.example.test", "www.example.test"),
        ("https", STRANGER, "api.example.test"),
    )
    # The stranger under the allowed name is never reached: the connection goes to the name's own address.
    assert reached[:2] == [f"{SITE} -", f"{SITE} -"]
    assert set(reached[2:4]) <= FAILED
    assert reached[4] in FAILED | {"SSLEOFError"}
    assert reached[5] == "gaierror"
    # Nobody came between: what the sandbox meets is the site's certificate, of an authority it does not know.
    assert reached[6] == "untrusted"
    seen = world.seen()
    assert not [entry for entry in seen if entry.startswith(STRANGER) or entry == "www.example.test"], seen


def test_a_list_of_allowed_names_holds_through_pause_resume_and_a_killed_server(server, world, sandboxes):
    sandbox = sandboxes(network=ONLY_API)
    assert sandbox.get_info().network == {**ONLY_API, "allow_public_traffic": True}
    assert_only_api_is_reached(world, sandbox)
    sandbox.pause()
    sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    assert_only_api_is_reached(world, sandbox)
    server.kill()
    server.start()
    sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    assert_only_api_is_reached(world, sandbox)
    assert sandbox.get_info().network == {**ONLY_API, "allow_public_traffic": True}


def test_what_is_reached_changes_while_a_sandbox_runs(world, sandboxes):
    sandbox = sandboxes()
    everything = [("http", SITE, "a.test"), ("http", STRANGER, "b.test")]
    assert attempts(sandbox, *everything) == [f"{SITE} -", f"{STRANGER} -"]
    sandbox.update_network({"deny_out": [STRANGER]})
    assert attempts(sandbox, *everything) == [f"{SITE} -", "ConnectionRefusedError"]
    sandbox.update_network({"allow_out": [STRANGER], "deny_out": ["198.51.100.0/24"]})
    assert attempts(sandbox, *everything) == ["ConnectionRefusedError", f"{STRANGER} -"]
    sandbox.update_network({"allow_internet_access": False})
    assert attempts(sandbox, *everything) == ["ConnectionRefusedError"] * 2
    assert sandbox.get_info().allow_internet_access is False
    sandbox.update_network({})
    assert attempts(sandbox, *everything) == [f"{SITE} -", f"{STRANGER} -"]
    sandbox.pause()
    with pytest.raises(NotFoundException):
        sandbox.update_network({})


def test_headers_of_a_rule_are_set_over_http_and_https_and_nowhere_else(world, sandboxes):
    rules = {"api.example.test": [{"transform": {"headers": {"X-Key": "secret"}}}]}
    requests = [
        ("http", "api.example.test", "api.example.test"),
        ("https", "api.example.test", "api.example.test"),
        ("https", STRANGER, "api.example.test"),
        ("http", STRANGER, "www.example.test"),
        ("https", STRANGER, "www.example.test"),
    ]
    expected = [f"{SITE} secret"] * 3 + [f"{STRANGER} -", "untrusted"]
    sandbox = sandboxes(network={"rules": rules})
    assert attempts(sandbox, *requests) == expected
    sandbox.pause()
    sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    assert attempts(sandbox, *requests) == expected
    # The same in a sandbox that learns of it while it runs.
    late = sandboxes()
    late.update_network({"rules": rules})
    assert attempts(late, *requests) == expected


def test_private_ranges_are_reached_only_where_the_operator_opened_them(server, world, sandboxes):
    sandbox = sandboxes()
    private = [("http", PRIVATE, "a.test"), ("http", "inside.example.test", "inside.example.test")]
    assert attempts(sandbox, *private) == ["ConnectionRefusedError"] * 2
    named = {"allow_out": ["*.example.test"], "deny_out": [ALL_TRAFFIC]}
    sandbox.update_network(named)
    assert set(attempts(sandbox, *private)) <= FAILED
    server.stop()
    before = list(server.settings)
    server.settings += ["--allow-private-networks", f"{PRIVATE}/32"]
    try:
        server.start()
        sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
        reached = attempts(sandbox, *private)
        assert reached[0] in FAILED and reached[1] == f"{PRIVATE} -"
        sandbox.update_network({})
        assert attempts(sandbox, *private) == [f"{PRIVATE} -"] * 2
    finally:
        if server.process is not None:
            server.stop()
        server.settings = before
        server.start()


@pytest.mark.parametrize(
    "network",
    [
        {"allow_out": ["api.example.test"]},
        {"deny_out": ["example.test"]},
        {"deny_out": ["10.0.0.0/40"]},
        {"egress_proxy": {"address": "10.0.0.1:1080"}},
        {"rules": {"*": [{"transform": {"headers": {"a": "b"}}}]}},
    ],
)
def test_what_cannot_be_enforced_is_refused_and_changes_nothing(sandbox, network):
    before = sandbox.get_info().network
    with pytest.raises((InvalidArgumentException, SandboxException), match="network"):
        sandbox.update_network(network)
    assert sandbox.get_info().network == before
    with pytest.raises((InvalidArgumentException, SandboxException), match="network"):
        Sandbox.create(network=network)

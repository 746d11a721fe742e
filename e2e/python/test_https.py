"""The same over HTTPS, with a certificate of a private authority made by `torpor tls`."""

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys

import pytest

from server import HTTPS_DOMAIN, torpor
from support import start_counter, wait_for

pytestmark = pytest.mark.owns_server


class Named(http.client.HTTPSConnection):
    """A connection to the server under one of its names, which no resolver here knows."""

    def __init__(self, server, name: str):
        context = ssl.create_default_context(cafile=str(server.authority))
        super().__init__(name, server.https_port, context=context, timeout=60)

    def connect(self):
        plain = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        self.sock = self._context.wrap_socket(plain, server_hostname=self.host)

    def ask(self, path: str, **headers: str) -> tuple[int, bytes]:
        self.request("GET", path, headers=headers)
        answer = self.getresponse()
        return answer.status, answer.read()


def test_the_api_is_reached_as_api_dot_domain(server):
    api = Named(server, f"api.{HTTPS_DOMAIN}")
    assert api.ask("/health")[0] == 200
    status, body = api.ask("/v2/sandboxes", **{"X-API-Key": os.environ["E2B_API_KEY"]})
    assert status == 200 and isinstance(json.loads(body), list)


def test_a_port_of_a_sandbox_is_reached_by_name_as_old_sdks_and_new_ones_build_it(server, sandbox):
    start_counter(sandbox)
    for name in (f"8000-{sandbox.sandbox_id}", f"8000-{sandbox.sandbox_id}-00000000"):
        status, body = Named(server, f"{name}.{HTTPS_DOMAIN}").ask("/")
        assert status == 200 and json.loads(body)["pid"]
    agent = f"49983-{sandbox.sandbox_id}-00000000.{HTTPS_DOMAIN}"
    assert Named(server, agent).ask("/health")[0] == 204
    sandbox.pause()
    assert Named(server, agent).ask("/health")[0] == 502


def test_a_renewed_certificate_is_shown_without_a_restart(server):
    def serial() -> str:
        connection = Named(server, f"api.{HTTPS_DOMAIN}")
        connection.connect()
        number = connection.sock.getpeercert()["serialNumber"]
        connection.close()
        return number

    before = serial()
    renewed = torpor("tls", "--data-dir", str(server.data), "--domain", HTTPS_DOMAIN, "--json")
    assert renewed.returncode == 0, renewed.stderr
    assert f"*.{HTTPS_DOMAIN}" in json.loads(renewed.stdout)["names"]
    wait_for(lambda: serial() != before, "the new certificate")


def test_killing_a_sandbox_ends_a_command_that_is_being_followed(server):
    # A process of its own, because SDKs read the list of authorities when they start.
    url = f"https://localhost:{server.https_port}"
    environment = {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "SSL_CERT_FILE": str(server.authority)}
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW_AND_KILL],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The SDK asks for the health after the cut and, told 502, says which of its exceptions it is.
    assert done.stdout in ("ended: SandboxNotRunningException\n", "ended: TimeoutException\n")


# The command would run for an hour; what ends it is the kill.
FOLLOW_AND_KILL = """
import threading
from e2b import Sandbox

sandbox = Sandbox.create(timeout=600)
started = threading.Event()
def follow():
    try:
        sandbox.commands.run("echo started; sleep 3600", timeout=0, on_stdout=lambda _: started.set())
    except Exception as error:
        print("ended:", type(error).__name__)
thread = threading.Thread(target=follow, daemon=True)
thread.start()
assert started.wait(120), "the command did not start"
sandbox.kill()
thread.join(120)
assert not thread.is_alive(), "the stream goes on"
"""

"""A sandbox in which nobody works is ended before its deadline; what works and what does not."""

import os
import socket
import time

import pytest
from e2b import PtySize, Sandbox, SandboxState

from support import api, http, listed, port, read_until, routing, start_counter, wait_for

IDLE_SECONDS = 3
# Longer than the timer and than what makes an exchange long; what is not paused by then was kept by its work.
SPELL_SECONDS = 12


@pytest.fixture
def idle(sandboxes):
    """Makes a sandbox that is paused when nobody worked in it for a few seconds."""

    def make(**fields) -> Sandbox:
        body = {"templateID": "base", "timeout": 600, "autoPause": True, "idleTimeout": IDLE_SECONDS, **fields}
        made = api("POST", "/v2/sandboxes", body)
        assert made.status == 201, made.body
        return sandboxes.own(Sandbox.connect(made.json["sandboxID"], timeout=600))

    return make


def is_paused(sandbox: Sandbox) -> bool:
    return listed().get(sandbox.sandbox_id) == SandboxState.PAUSED


def stays_running(sandbox: Sandbox) -> None:
    end = time.monotonic() + SPELL_SECONDS
    while time.monotonic() < end:
        assert not is_paused(sandbox), "it was paused while somebody worked in it"
        time.sleep(0.2)


def test_polling_keeps_nothing_alive_and_the_sandbox_is_paused(idle):
    sandbox = idle()
    agent = routing(sandbox.sandbox_id, 49983)

    def paused_meanwhile():
        http("GET", os.environ["E2B_SANDBOX_URL"] + "/health", headers=agent)
        api("GET", f"/sandboxes/{sandbox.sandbox_id}")
        api("GET", f"/sandboxes/{sandbox.sandbox_id}/metrics")
        return is_paused(sandbox)

    wait_for(paused_meanwhile, "the sandbox to be paused")
    detail = api("GET", f"/sandboxes/{sandbox.sandbox_id}").json
    assert detail["idleTimeout"] == IDLE_SECONDS

    def told():
        logs = api("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs").json["logs"]
        return any("nobody worked in it for 3 seconds" in entry["message"] for entry in logs)

    wait_for(told, "the log entry")
    # The clock begins anew with a resume.
    sandbox.connect(timeout=600)
    assert sandbox.commands.run("echo back").stdout == "back\n"
    wait_for(lambda: is_paused(sandbox), "the sandbox to be paused again")


def test_one_that_is_to_be_killed_is_killed(idle):
    sandbox = idle(autoPause=False)
    wait_for(lambda: sandbox.sandbox_id not in listed(), "the sandbox to be killed")


def test_a_command_that_nobody_follows_is_work_until_it_ends(idle):
    sandbox = idle()
    command = sandbox.commands.run("sleep 1000", background=True)
    command.disconnect()
    stays_running(sandbox)
    sandbox.commands.kill(command.pid)
    wait_for(lambda: is_paused(sandbox), "the sandbox to be paused")


def test_a_terminal_that_nobody_looks_at_is_work_until_it_is_closed(idle):
    sandbox = idle()
    terminal = sandbox.pty.create(size=PtySize(rows=24, cols=80), timeout=0)
    sandbox.pty.send_stdin(terminal.pid, b"echo rea''dy\n")
    read_until(terminal, b"ready")
    terminal.disconnect()
    stays_running(sandbox)
    sandbox.pty.kill(terminal.pid)
    wait_for(lambda: is_paused(sandbox), "the sandbox to be paused")


SERVER = """
import socket, threading
def serve(connection):
    with connection:
        request = connection.recv(65536)
        if b"upgrade: websocket" in request.lower():
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n")
        elif b"GET /stream" in request:
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1000\\r\\n\\r\\nfirst")
        connection.recv(1)
listener = socket.create_server(("0.0.0.0", 8000), backlog=20)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.mark.parametrize("kind", ["WebSocket", "streamed answer", "answer that is waited for"])
def test_an_open_connection_is_work_until_it_is_closed(idle, kind):
    sandbox = idle()
    sandbox.files.write("server.py", SERVER)
    # Left behind by a command that ends: not work by itself.
    sandbox.commands.run("setsid python3 server.py > /dev/null 2>&1 < /dev/null & sleep 0")
    host, number = os.environ["E2B_SANDBOX_URL"].removeprefix("http://").split(":")
    path = {"WebSocket": "/", "streamed answer": "/stream", "answer that is waited for": "/wait"}[kind]
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nE2b-Sandbox-Id: {sandbox.sandbox_id}\r\nE2b-Sandbox-Port: 8000\r\n"
    if kind == "WebSocket":
        head += "Connection: Upgrade\r\nUpgrade: websocket\r\n"

    def connected():
        connection = socket.create_connection((host, int(number)))
        connection.sendall((head + "\r\n").encode())
        if kind == "answer that is waited for":
            connection.settimeout(2)
            try:
                return None if connection.recv(10) else connection
            except TimeoutError:
                return connection
        status = connection.recv(12)
        return connection if status in (b"HTTP/1.1 101", b"HTTP/1.1 200") else connection.close()

    with wait_for(connected, "the program to listen"):
        stays_running(sandbox)
    wait_for(lambda: is_paused(sandbox), "the sandbox to be paused")


def test_the_timer_must_be_positive_and_without_one_nothing_is_ended(sandbox):
    assert api("POST", "/v2/sandboxes", {"templateID": "base", "idleTimeout": 0}).status == 400
    counter = start_counter(sandbox)
    stays_running(sandbox)
    assert port(sandbox.sandbox_id, 8000).json["pid"] == counter["pid"]

"""Ports of a sandbox, reached from outside: routing, streaming, WebSocket, refusals."""

import hashlib
import http.client
import os
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect as websocket

from e2b import Sandbox, SandboxState
from support import Answer, api, port, routing, start_counter, together, wait_for
from support import http as request

# One server with everything these tests ask for: echo of what arrived, a body that is finished only when told, and a
# WebSocket that echoes.
SERVER = """
import base64, hashlib, http.server, json, struct, threading

released = threading.Event()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        data = self.body()
        if self.path == "/release":
            released.set()
        self.answer(json.dumps({
            "path": self.path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            "headers": {k.lower(): v for k, v in self.headers.items()},
        }).encode())

    do_PUT = do_PATCH = do_DELETE = do_POST

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        if self.path == "/slow":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"first", b"second"):
                self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(part), part))
                self.wfile.flush()
                released.wait()
            self.wfile.write(b"0\\r\\n\\r\\n")
            return
        if self.path == "/big":
            return self.answer(bytes(range(256)) * 32768, "application/octet-stream")
        if self.path == "/teapot":
            self.send_response(418)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.do_POST()

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        while True:
            first, second = self.rfile.read(2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack(">H", self.rfile.read(2))
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            if first & 15 == 8:
                self.wfile.write(bytes([0x88, length]) + data)
                break
            head = bytes([first, length]) if length < 126 else bytes([first, 126]) + struct.pack(">H", length)
            self.wfile.write(head + data)
            self.wfile.flush()
        self.close_connection = True

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
"""


@pytest.fixture
def served(sandbox):
    """A sandbox whose port 3000 is served."""
    sandbox.files.write("/home/user/server.py", SERVER)
    sandbox.commands.run("python3 server.py", background=True, timeout=0)
    wait_for(lambda: port(sandbox.sandbox_id, 3000).status == 200, "port 3000")
    return sandbox


def test_method_path_query_and_headers_arrive_as_sent(served):
    url = os.environ["E2B_SANDBOX_URL"] + "/a/b%20c?x=1&y=%26"
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = request(method, url, b"hello", {**routing(served.sandbox_id, 3000), "X-Own": "kept"})
        assert answer.status == 200
        assert answer.json["path"] == "/a/b%20c?x=1&y=%26"
        assert answer.json["headers"]["x-own"] == "kept"
        assert answer.json["bytes"] == 5


def test_the_application_decides_the_status(served):
    assert port(served.sandbox_id, 3000, "/teapot").status == 418


def test_a_port_is_also_reached_by_host_name(served):
    for host in (f"3000-{served.sandbox_id}.localhost", f"3000-{served.sandbox_id}.sandboxes.example:8443"):
        address = urlsplit(os.environ["E2B_SANDBOX_URL"])
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        connection.request("GET", "/by-name", headers={"Host": host})
        response = connection.getresponse()
        answer = Answer(response.status, response.read())
        connection.close()
        assert (answer.status, answer.json["path"]) == (200, "/by-name")


def test_paths_of_the_control_plane_belong_to_the_sandbox_when_its_host_is_named(served):
    address = urlsplit(os.environ["E2B_SANDBOX_URL"])
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("GET", "/sandboxes", headers={"Host": f"3000-{served.sandbox_id}.localhost"})
    response = connection.getresponse()
    assert response.status == 200
    assert b'"/sandboxes"' in response.read()
    connection.close()


def test_a_large_upload_and_a_large_download_arrive_whole(served):
    data = os.urandom(12_000_000)
    uploaded = port(served.sandbox_id, 3000, "/up", "POST", data)
    assert uploaded.json["sha256"] == hashlib.sha256(data).hexdigest()
    downloaded = port(served.sandbox_id, 3000, "/big")
    assert downloaded.body == bytes(range(256)) * 32768


def test_a_chunked_upload_arrives_whole(served):
    address = urlsplit(os.environ["E2B_SANDBOX_URL"])
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    parts = [os.urandom(1000) for _ in range(50)]
    connection.request("POST", "/chunks", iter(parts), routing(served.sandbox_id, 3000), encode_chunked=True)
    answer = Answer(200, connection.getresponse().read())
    connection.close()
    assert answer.json["sha256"] == hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_response_is_passed_on_while_it_is_being_made(served):
    # The server finishes its response only after the client, having read the first part, releases it.
    address = urlsplit(os.environ["E2B_SANDBOX_URL"])
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("GET", "/slow", headers=routing(served.sandbox_id, 3000))
    response = connection.getresponse()
    assert response.read(5) == b"first"
    assert port(served.sandbox_id, 3000, "/release", "POST", b"").status == 200
    assert response.read() == b"second"
    connection.close()


def test_a_websocket_goes_through_both_ways(served):
    address = urlsplit(os.environ["E2B_SANDBOX_URL"])
    with websocket(
        f"ws://{address.hostname}:{address.port}/socket",
        additional_headers=routing(served.sandbox_id, 3000),
        compression=None,
        open_timeout=60,
        close_timeout=10,
    ) as socket:
        for message in ("hello", "žluťoučký kůň", "x" * 10_000):
            socket.send(message)
            assert socket.recv(timeout=60) == message
        socket.send(b"\x00\x01\x02")
        assert socket.recv(timeout=60) == b"\x00\x01\x02"


def test_killing_the_sandbox_ends_an_open_response(served):
    address = urlsplit(os.environ["E2B_SANDBOX_URL"])
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("GET", "/slow", headers=routing(served.sandbox_id, 3000))
    response = connection.getresponse()
    assert response.read(5) == b"first"
    served.kill()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(response.read)
        try:
            rest = reading.result(timeout=50)
        except (OSError, http.client.HTTPException):
            rest = b""  # cut off, as it should be
    assert b"second" not in rest


def test_without_public_traffic_a_port_wants_its_token_and_the_agent_its_own(sandboxes):
    private = sandboxes(network={"allow_public_traffic": False, "mask_request_host": "localhost:${PORT}"})
    token = private.traffic_access_token
    assert token and token != private._envd_access_token
    private.files.write("/home/user/server.py", SERVER)
    private.commands.run("python3 server.py", background=True, timeout=0)
    url = os.environ["E2B_SANDBOX_URL"] + "/"

    def ask(**headers: str) -> Answer:
        return request("GET", url, headers={**routing(private.sandbox_id, 3000), **headers})

    shown = {"E2B-Traffic-Access-Token": token}
    answer = wait_for(lambda: (got := ask(**shown)).status == 200 and got, "port 3000")
    assert answer.json["headers"]["host"] == "localhost:3000"
    assert "e2b-traffic-access-token" not in answer.json["headers"]
    for headers in ({}, {"E2B-Traffic-Access-Token": token[:-1]}, {"X-Access-Token": token}):
        refused = ask(**headers)
        assert (refused.status, refused.json["code"], refused.json["sandboxId"]) == (403, 403, private.sandbox_id)
    # A token is the sandbox's own, and the same after a pause.
    other = sandboxes(network={"allow_public_traffic": False})
    assert other.traffic_access_token != token
    private.pause()
    assert ask(**shown).status == 502
    assert ask().status == 403
    assert Sandbox.connect(private.sandbox_id, timeout=600).traffic_access_token == token
    assert wait_for(lambda: ask(**shown).status == 200, "port 3000")


def test_private_ports_need_a_secured_sandbox(server):
    body = {"templateID": "base", "secure": False, "network": {"allowPublicTraffic": False}}
    assert api("POST", "/sandboxes", body).status == 400
    body = {"templateID": "base", "network": {"maskRequestHost": "not a host"}}
    assert api("POST", "/v2/sandboxes", body).status == 400


def test_any_number_of_requests_at_once_resume_a_sandbox_once(sandboxes):
    woken = sandboxes(timeout=600, lifecycle={"on_timeout": "pause", "auto_resume": True})
    before = start_counter(woken)
    woken.pause()
    answers = together(20, lambda _: port(woken.sandbox_id, 8000))
    assert [answer.status for answer in answers] == [200] * 20
    assert {answer.json["pid"] for answer in answers} == {before["pid"]}
    info = woken.get_info()
    assert info.state == SandboxState.RUNNING
    assert (info.end_at - info.started_at).total_seconds() == 600
    # Later traffic finds it running and moves nothing.
    together(5, lambda _: port(woken.sandbox_id, 8000))
    assert (woken.get_info().started_at, woken.get_info().end_at) == (info.started_at, info.end_at)


def test_traffic_resumes_for_at_least_five_minutes_and_by_the_agents_port_too(sandboxes):
    woken = sandboxes(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    woken.pause()
    assert woken.commands.run("echo awake").stdout == "awake\n"
    info = woken.get_info()
    assert (info.end_at - info.started_at).total_seconds() == 300


def test_a_request_without_a_token_resumes_nothing(sandboxes):
    paused = sandboxes(
        lifecycle={"on_timeout": "pause", "auto_resume": True}, network={"allow_public_traffic": False}
    )
    paused.pause()
    assert port(paused.sandbox_id, 8000).status == 403
    assert port(paused.sandbox_id, 49983, "/envs").status == 403
    assert port(paused.sandbox_id, 49983, "/files?path=/etc/hostname").status == 403
    assert paused.get_info().state == SandboxState.PAUSED


def test_traffic_does_not_resume_a_sandbox_that_was_not_made_so(sandboxes):
    paused = sandboxes()
    paused.pause()
    answer = port(paused.sandbox_id, 8000)
    assert answer.status == 502
    assert answer.json == {"sandboxId": paused.sandbox_id, "message": "The sandbox was not found", "code": 502}
    assert paused.get_info().state == SandboxState.PAUSED


def test_a_signed_url_that_names_no_sandbox_reads_and_writes_a_file_of_its_own(sandboxes):
    first, second = sandboxes(), sandboxes()
    for owner, text in ((first, "of the first"), (second, "of the second")):
        owner.files.write("/home/user/note.txt", text)
    for owner, text in ((first, b"of the first"), (second, b"of the second")):
        url = owner.download_url("/home/user/note.txt", use_signature_expiration=600)
        assert url.startswith(os.environ["E2B_SANDBOX_URL"])
        assert request("GET", url).body == text
    uploaded = request(
        "POST",
        second.upload_url("/home/user/new.txt"),
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="new.txt"\r\n\r\nuploaded\r\n--b--\r\n',
        {"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert uploaded.status == 200
    assert second.files.read("/home/user/new.txt") == "uploaded"
    forged = request("GET", first.download_url("/home/user/note.txt") + "0")
    assert (forged.status, forged.json) == (401, {"code": 401, "message": "invalid signature"})
    expired = request("GET", first.download_url("/home/user/note.txt", use_signature_expiration=-10))
    assert (expired.status, expired.json) == (401, {"code": 401, "message": "signature is already expired"})


def test_a_browser_at_a_paused_sandbox_gets_a_page_that_looks_again(sandbox):
    sandbox.pause()
    headers = {**routing(sandbox.sandbox_id, 8000), "Accept": "text/html", "User-Agent": "Mozilla/5.0"}
    answer = request("GET", os.environ["E2B_SANDBOX_URL"] + "/", headers=headers)
    assert answer.status == 502
    assert b"This sandbox is paused" in answer.body and b'http-equiv="refresh"' in answer.body


def test_a_port_that_nobody_listens_on_is_502_and_names_the_port(sandbox):
    answer = port(sandbox.sandbox_id, 4321)
    assert answer.status == 502
    assert answer.json["port"] == 4321
    assert answer.json["sandboxId"] == sandbox.sandbox_id


def test_a_sandbox_that_does_not_exist_is_502(server):
    answer = port("i0000000000000000000", 8000)
    assert answer.status == 502
    assert answer.json["code"] == 502


def test_a_bad_port_is_refused_without_harm(sandbox):
    for bad in ("0", "70000", "-1", "eighty", ""):
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": bad}
        assert request("GET", os.environ["E2B_SANDBOX_URL"] + "/", headers=headers).status in (400, 404, 502), bad
    assert sandbox.is_running()


def test_the_agent_wants_its_token(sandbox):
    answer = port(sandbox.sandbox_id, 49983, "/envs")
    assert answer.status == 401
    assert answer.json["code"] == 401


def test_the_hosts_own_calls_to_the_agent_are_not_reachable_from_outside(sandbox):
    answer = port(sandbox.sandbox_id, 49983, "/init", "POST", b"{}")
    assert answer.status == 404
    assert sandbox.commands.run("echo unharmed").stdout == "unharmed\n"


def test_the_apis_health_needs_no_key(server):
    assert api("GET", "/health", key=None).status in (200, 204)

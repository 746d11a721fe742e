"""A small internet in a network namespace: a resolver, sites under several names, a private service.

    198.51.100.53    DNS for *.test
    198.51.100.10    api.example.test and www.example.test, over HTTP and HTTPS
    198.51.100.20    somebody else, who answers to any name
    10.222.0.2      a service in a private range

As a module: `internet()`, which makes it and takes it away. As a program, inside the namespace: its servers.
"""

import http.server
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

RESOLVER, SITE, STRANGER = "198.51.100.53", "198.51.100.10", "198.51.100.20"
PRIVATE = "10.222.0.2"
NAMES = {"api.example.test": SITE, "www.example.test": SITE, "inside.example.test": PRIVATE}


class Internet:
    def __init__(self, directory: Path, servers: subprocess.Popen):
        self.roots = directory / "ca.pem"
        self.servers = servers

    def seen(self) -> list[str]:
        """What reached it since the last call: names the DNS was asked for, and `address host key` of requests."""
        self.servers.stdin.write(b"\n")
        self.servers.stdin.flush()
        return json.loads(self.servers.stdout.readline())


@contextmanager
def internet():
    name = f"torpor-e2e-{os.getpid()}"
    near, far = f"te{os.getpid()}a"[:15], f"te{os.getpid()}b"[:15]
    with tempfile.TemporaryDirectory(prefix="torpor-e2e-") as directory:
        make_certificates(Path(directory))
        run("ip", "netns", "add", name)
        try:
            run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
            for address in ("198.51.100.1/24", "10.222.0.1/24"):
                run("ip", "addr", "add", address, "dev", near)
            run("ip", "link", "set", near, "up")
            for address in (RESOLVER, SITE, STRANGER, PRIVATE):
                run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", far)
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", far, "up")
            servers = subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, __file__, directory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                assert servers.stdout.readline() == b"ready\n"
                yield Internet(Path(directory), servers)
            finally:
                servers.stdin.close()
                servers.wait(30)
        finally:
            subprocess.run(["ip", "link", "del", near], check=False)
            run("ip", "netns", "del", name)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)


def make_certificates(directory: Path) -> None:
    """An authority, and a certificate of it for the site."""
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    ca = ["-keyout", directory / "ca.key", "-out", directory / "ca.pem", "-subj", "/CN=The public authority"]
    run("openssl", "req", "-x509", *ec, *map(str, ca))
    names = ",".join(f"DNS:{name}" for name in NAMES)
    site = ["-CA", directory / "ca.pem", "-CAkey", directory / "ca.key", "-subj", "/CN=The site", "-addext"]
    site += [f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE"]
    site += ["-keyout", directory / "site.key", "-out", directory / "site.pem"]
    run("openssl", "req", "-x509", *ec, *map(str, site))


SEEN: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        here = self.connection.getsockname()[0]
        key = self.headers.get("x-key", "-")
        SEEN.append(f"{here} {self.headers.get('host')} {key}")
        body = json.dumps({"here": here, "key": key}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class TlsServer(http.server.ThreadingHTTPServer):
    context: ssl.SSLContext

    def finish_request(self, request, client_address):
        SEEN.append(f"{request.getsockname()[0]} TLS")
        # In the request's own thread: a client that says nothing must not keep the others waiting.
        with self.context.wrap_socket(request, server_side=True) as tls:
            super().finish_request(tls, client_address)

    def handle_error(self, *_):
        """Clients that do not trust the certificate hang up."""


def serve_dns() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((RESOLVER, 53))
        while True:
            query, client = server.recvfrom(4096)
            end, labels = 12, []
            while query[end]:
                labels.append(query[end + 1 : end + 1 + query[end]].decode().lower())
                end += 1 + query[end]
            name = ".".join(labels)
            SEEN.append(name)
            question = query[12 : end + 5]
            address = NAMES.get(name) if question[-4:-2] == b"\0\1" else None
            code = 0 if name in NAMES else 3
            header = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, 1 if address else 0, 0, 0)
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(address) if address else b""
            server.sendto(header + question + record, client)


def main(directory: Path) -> None:
    servers = [http.server.ThreadingHTTPServer((address, 80), Handler) for address in (SITE, STRANGER, PRIVATE)]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "site.pem", directory / "site.key")
    TlsServer.context = context
    servers += [TlsServer((address, 443), Handler) for address in (SITE, STRANGER)]
    for serve in [serve_dns, *(server.serve_forever for server in servers)]:
        threading.Thread(target=serve, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(SEEN), flush=True)
        SEEN.clear()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

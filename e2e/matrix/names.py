"""A name server for a domain and everything below it, and commands that ask it instead of the host's.

SDKs before 2.7 reach a sandbox by its host name `{port}-{id}.{domain}` only, so the domain needs a wildcard, which
`/etc/hosts` cannot say. Nothing in the SDK's process is touched: the command gets a mount namespace in which
`/etc/resolv.conf` names this server. All names below the domain are 127.0.0.1; there are no others.
"""

import socket
import struct
import threading
from pathlib import Path

# An address of the loopback network that nothing else is likely to use; the port of a name server is always 53.
ADDRESS = "127.153.0.1"
LOOPBACK = socket.inet_aton("127.0.0.1")
A, IN, NAME_ERROR = 1, 1, 3
AUTHORITATIVE_ANSWER = 0x8400

ENTER = """
mount --bind "$1/resolv.conf" /etc/resolv.conf
if [ -e /etc/nsswitch.conf ]; then mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf; fi
shift
exec "$@"
"""


class NameServer:
    """Answers until the process ends."""

    def __init__(self, domain: str, directory: Path):
        self.domain = domain
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
        (directory / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((ADDRESS, 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            query, client = self.socket.recvfrom(4096)
            answer = answer_to(query, self.domain)
            if answer:
                self.socket.sendto(answer, client)

    def command(self, command: list[str]) -> list[str]:
        """The command, in a mount namespace whose resolver is this one."""
        enter = "unshare --mount --propagation private sh -ec".split()
        return [*enter, ENTER, "sh", str(self.directory), *command]


def answer_to(query: bytes, domain: str) -> bytes | None:
    """The answer to a query for one name; None if it is not a query."""
    if len(query) < 17 or query[2] & 0x80:
        return None
    labels, at = [], 12
    while at < len(query) and query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace").lower())
        at += 1 + query[at]
    question = query[12 : at + 5]
    if len(question) < 5:
        return None
    kind = struct.unpack("!H", question[-4:-2])[0]
    ours = ".".join(labels).endswith(f".{domain}") or ".".join(labels) == domain
    found = ours and kind == A
    flags = AUTHORITATIVE_ANSWER | (query[2] & 1) << 8 | (0 if ours else NAME_ERROR)
    head = query[:2] + struct.pack("!HHHHH", flags, 1, int(found), 0, 0)
    # The name by a pointer to the question, no time to live.
    record = b"\xc0\x0c" + struct.pack("!HHIH", A, IN, 0, 4) + LOOPBACK
    return head + question + (record if found else b"")

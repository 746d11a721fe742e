"""The server that the releases are run against, and how a program gets to it.

With TORPOR_E2E_URL, E2B_API_KEY, E2B_DOMAIN (its host part leads here) and SSL_CERT_FILE, a server that runs already is used.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from names import NameServer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from server import Server, data_dir, torpor  # noqa: E402

# Reserved for such use; it exists nowhere but in our own name server.
DOMAIN = "e2b.test"


@dataclass
class Site:
    names: NameServer
    url: str
    api_key: str
    # What a program needs in its environment to get there by name: the domain, and whom to trust.
    by_name: dict[str, str]

    def environment(self, way: str) -> dict[str, str]:
        by_url = {"E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}
        return {"E2B_API_KEY": self.api_key, **(by_url if way == "URL" else self.by_name)}

    def command(self, way: str, command: list[str]) -> list[str]:
        """A program that goes by URLs is run as it is."""
        return command if way == "URL" else self.names.command(command)


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """A server that lives as long as the block, reached over plain HTTP and over TLS."""
    if os.environ.get("TORPOR_E2E_URL"):
        trusted = os.environ["SSL_CERT_FILE"]
        domain = os.environ["E2B_DOMAIN"]
        by_name = {"E2B_DOMAIN": domain, "SSL_CERT_FILE": trusted, "NODE_EXTRA_CA_CERTS": trusted}
        names = NameServer(domain.partition(":")[0], directory / "names")
        yield Site(names, os.environ["TORPOR_E2E_URL"], os.environ["E2B_API_KEY"], by_name)
        return
    server = Server(data_dir())
    address = f"{DOMAIN}:{server.https_port}"
    made = torpor("tls", "--data-dir", str(server.data), "--domain", address, "--json")
    if made.returncode != 0:
        raise SystemExit(f"torpor tls failed: {made.stderr}")
    server.settings = ["--domain", address]
    try:
        server.start()
        names = NameServer(DOMAIN, directory / "names")
        yield Site(names, server.url, server.api_key, json.loads(made.stdout)["environment"])
    finally:
        server.stop()

"""The server that the releases are run against, and how a program gets to it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from names import NameServer


@dataclass
class Site:
    names: NameServer
    api_key: str
    url: str
    # The domain with the port that TLS is spoken on, and the certificate authority's file.
    domain: str
    authority: Path

    def environment(self, way: str) -> dict[str, str]:
        if way == "URL":
            return {"E2B_API_KEY": self.api_key, "E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}
        trusted = str(self.authority)
        return {
            "E2B_API_KEY": self.api_key,
            "E2B_DOMAIN": self.domain,
            "SSL_CERT_FILE": trusted,
            "NODE_EXTRA_CA_CERTS": trusted,
        }

    def command(self, way: str, command: list[str]) -> list[str]:
        return self.names.command(command) if way == "name" else command


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """TODO: own server"""
    domain = os.environ["TORPOR_E2E_DOMAIN"]
    names = NameServer.__new__(NameServer); names.directory=Path("/tmp/matrix-names")
    yield Site(
        names,
        os.environ["E2B_API_KEY"],
        os.environ["TORPOR_E2E_URL"],
        domain,
        Path(os.environ["TORPOR_E2E_AUTHORITY"]),
    )

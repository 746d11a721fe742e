"""A real server, and the official command line as published, with nothing of the user's own configuration."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from server import TARGET, Server, data_dir  # noqa: E402
from terminal import CommandLine  # noqa: E402

PROGRAM = TARGET / "cli" / "node_modules" / ".bin" / "e2b"


@pytest.fixture(scope="session")
def addresses():
    """What a program needs in its environment to get to the server under test."""
    url = os.environ.get("TORPOR_E2E_URL")
    if url:
        yield {"E2B_API_KEY": os.environ["E2B_API_KEY"], "E2B_API_URL": url, "E2B_SANDBOX_URL": url}
        return
    server = Server(data_dir())
    server.start()
    yield server.environment()
    server.stop()


@pytest.fixture
def e2b(addresses):
    assert PROGRAM.exists(), f"{PROGRAM} is missing: npm install --prefix {TARGET / 'cli'} @e2b/cli"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("E2B_")}
    with tempfile.TemporaryDirectory() as home:
        command_line = CommandLine(PROGRAM, {**kept, **addresses, "HOME": home, "TERM": "xterm-256color"})
        yield command_line
        command_line.clean()


@pytest.fixture
def sandbox_id(e2b) -> str:
    """A new sandbox, made by the command line."""
    return e2b.make()

"""A real server, and a fresh sandbox for each test that asks for one."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from server import Server, data_dir  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def server():
    """The server under test; None when TORPOR_E2E_URL names one that the suite does not own."""
    url = os.environ.get("TORPOR_E2E_URL")
    if url:
        os.environ.update(E2B_API_URL=url, E2B_SANDBOX_URL=url)
        yield None
        return
    server = Server(data_dir())
    server.start()
    os.environ.update(server.environment())
    yield server
    if server.process is not None:
        server.stop()


@pytest.fixture(autouse=True)
def _needs_own_server(request, server):
    if request.node.get_closest_marker("owns_server") and server is None:
        pytest.skip("the server was not started by this suite")


@pytest.fixture
def sandboxes():
    """Makes sandboxes and kills them when the test is over, whatever state they are in by then; `own` adds one that
    was made otherwise."""
    from e2b import Sandbox

    made = []

    def own(sandbox):
        made.append(sandbox.sandbox_id)
        return sandbox

    def make(**options):
        options.setdefault("timeout", 600)
        return own(Sandbox.create(**options))

    make.own = own
    yield make
    for sandbox_id in made:
        Sandbox.kill(sandbox_id)


@pytest.fixture
def sandbox(sandboxes):
    return sandboxes()


@pytest.fixture
async def async_sandbox():
    from e2b import AsyncSandbox

    sandbox = await AsyncSandbox.create(timeout=600)
    yield sandbox
    await AsyncSandbox.kill(sandbox.sandbox_id)

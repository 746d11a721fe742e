"""The synchronous and the asynchronous half of the Python SDK, so that one scenario serves for both.

Most calls have the same shape in both halves, and `settle` waits for the result where there is something to wait for.
What differs, terminals and watchers, is here.
"""

import asyncio
import inspect

import e2b
from e2b import PtySize

from report import DEADLINE_SECONDS, wait_for


async def settle(value):
    """The value itself, or what an awaitable comes to."""
    return await value if inspect.isawaitable(value) else value


class Sync:
    Sandbox = e2b.Sandbox

    def in_background(self, value) -> None:
        """Does what a callback started: a synchronous call is over by now."""

    async def terminal(self, sandbox, size: PtySize):
        return SyncTerminal(sandbox.pty.create(size, timeout=DEADLINE_SECONDS))

    async def watch(self, sandbox, path: str, **options):
        return SyncWatch(sandbox.files.watch_dir(path, **options))


class SyncTerminal:
    def __init__(self, handle):
        self.pid = handle.pid
        self.output = iter(handle)
        self.seen = b""

    async def shows(self, wanted: bytes) -> None:
        """Reads until `wanted` has been printed. The stream's own timeout is the deadline."""
        while wanted not in self.seen:
            _, _, output = next(self.output, (None, None, None))
            assert output is not None, f"the terminal ended without printing {wanted!r}; it printed {self.seen!r}"
            self.seen += output


class SyncWatch:
    def __init__(self, handle):
        self.handle = handle
        self.seen = []

    async def shows(self, wanted: set) -> None:
        async def all_there():
            self.seen += [(event.name, event.type.value) for event in self.handle.get_new_events()]
            return wanted <= set(self.seen)

        await wait_for(all_there, f"the events {wanted}; seen: {self.seen}")

    async def stop(self) -> None:
        self.handle.stop()


class Async:
    Sandbox = e2b.AsyncSandbox

    def __init__(self):
        self.started = set()

    def in_background(self, value) -> None:
        self.started.add(asyncio.ensure_future(value))

    async def terminal(self, sandbox, size: PtySize):
        terminal = AsyncTerminal()
        handle = await sandbox.pty.create(size, on_data=terminal.take, timeout=DEADLINE_SECONDS)
        terminal.pid, terminal.handle = handle.pid, handle
        return terminal

    async def watch(self, sandbox, path: str, **options):
        watch = AsyncWatch()
        watch.handle = await sandbox.files.watch_dir(path, on_event=watch.take, **options)
        return watch


class AsyncTerminal:
    def __init__(self):
        self.seen = b""

    def take(self, output: bytes) -> None:
        self.seen += output

    async def shows(self, wanted: bytes) -> None:
        async def printed():
            return wanted in self.seen

        await wait_for(printed, f"the terminal to print {wanted!r}; it printed {self.seen!r}")


class AsyncWatch:
    def __init__(self):
        self.seen = []

    def take(self, event) -> None:
        self.seen.append((event.name, event.type.value))

    async def shows(self, wanted: set) -> None:
        async def all_there():
            return wanted <= set(self.seen)

        await wait_for(all_there, f"the events {wanted}; seen: {self.seen}")

    async def stop(self) -> None:
        await self.handle.stop()


FLAVOURS = {"sync": Sync, "async": Async}

"""Many clients at once, for minutes: each creates a sandbox, runs something, pauses it, resumes it, runs something that has
to find what the first left in memory, kills it, and starts over.

The server lets a team have only so many sandboxes running, far fewer than there are clients. So most requests to create
and to resume are refused with 429 at first; clients wait and ask again, as SDKs do. Every other refusal, every wrong
answer, and everything the server still holds at the end that it did not hold at the start, is a failure.

    python e2e/load.py [--clients 200] [--minutes 10] [--max-running 15]

Most clients speak plain HTTP, which costs this machine little; every tenth is the published SDK. Where the server, the
data directory and the log come from: see server.py.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
from e2b import AsyncSandbox, RateLimitException
from footprint import difference, footprint, instance, resident_kib, settled, threads
from server import Server, data_dir

AGENT_PORT = 49983
TEMPLATE = "base"
# Of a sandbox, and of a request. Under software emulation and load both are long.
SANDBOX_SECONDS = 1800
REQUEST_SECONDS = 300
# What ends in the background after the last answer: saves, removals, the refill of the warm pool, and in the kernel, one
# after the other, the network namespaces.
SETTLE_SECONDS = 600
# What the process writes to memory and reads back after the resume. The boot's id shows that it is the same machine.
REMEMBER = 'read -r boot < /proc/sys/kernel/random/boot_id; echo "$boot $0" > /dev/shm/token; cat /dev/shm/token'
RECALL = 'read -r boot < /proc/sys/kernel/random/boot_id; read -r line < /dev/shm/token; echo "$boot ${line#* }"'
# Descriptors and space that differ and are no leak: connections that idle, and the file system's own bookkeeping.
TOLERANCE = {"descriptor: socket:": 8, "vault: KiB": 4096}


@dataclass
class Tally:
    """What happened, over all clients."""

    cycles: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def took(self, step: str, started: float) -> None:
        self.seconds.setdefault(step, []).append(time.monotonic() - started)


class Wrong(Exception):
    """An answer that is not what it has to be."""


class TimeIsUp(Exception):
    """There was no room for this client until the end."""


# What clients of both kinds do.
class Client:
    def __init__(self, tally: Tally, number: int, until: float):
        self.tally = tally
        self.number = number
        self.until = until
        self.random = random.Random(number)

    async def create(self) -> None: ...
    async def run(self, script: str, argument: str) -> str: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def kill(self) -> None: ...

    async def allowed(self, step: str, act) -> None:
        """Asks until there is room for one more running sandbox. Only the request that is granted is timed."""
        wait = 0.5
        while True:
            started = time.monotonic()
            if await act():
                self.tally.took(step, started)
                return
            self.tally.refused[step] += 1
            if time.monotonic() > self.until:
                raise TimeIsUp
            await asyncio.sleep(self.random.uniform(wait / 2, wait))
            wait = min(wait * 1.5, 10)

    async def timed(self, step: str, act):
        started = time.monotonic()
        answer = await act
        self.tally.took(step, started)
        return answer

    async def cycle(self) -> None:
        token = f"{self.number}-{self.random.randrange(1 << 30)}"
        await self.create()
        try:
            first = await self.timed("run", self.run(REMEMBER, token))
            await self.timed("pause", self.pause())
            await self.resume()
            second = await self.timed("run again", self.run(RECALL, token))
            if first != second or not first.endswith(f" {token}\n"):
                raise Wrong(f"before the pause {first!r}, after the resume {second!r}, and the token is {token}")
        finally:
            await self.timed("kill", self.kill())
        self.tally.cycles += 1

    async def work(self) -> None:
        # Not all at the very same moment.
        await asyncio.sleep(self.random.uniform(0, 2))
        while time.monotonic() < self.until:
            try:
                await self.cycle()
            except TimeIsUp:
                return
            except Exception as error:  # whatever it is, it is told at the end
                self.tally.failures.append(f"client {self.number}: {type(error).__name__}: {error}")


class PlainClient(Client):
    """Speaks HTTP itself."""

    def __init__(self, tally: Tally, number: int, until: float, http: httpx.AsyncClient):
        super().__init__(tally, number, until)
        self.http = http
        self.sandbox: dict = {}

    async def api(self, method: str, path: str, body: dict | None, expected: tuple[int, ...]) -> httpx.Response:
        answer = await self.http.request(method, path, json=body)
        if answer.status_code not in expected:
            raise Wrong(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer

    async def create(self) -> None:
        body = {"templateID": TEMPLATE, "timeout": SANDBOX_SECONDS, "metadata": {"client": str(self.number)}}

        async def ask() -> bool:
            answer = await self.api("POST", "/v2/sandboxes", body, (201, 429))
            if answer.status_code == 429:
                return False
            self.sandbox = answer.json()
            return True

        await self.allowed("create", ask)

    async def run(self, script: str, argument: str) -> str:
        request = json.dumps({"process": {"cmd": "/bin/sh", "args": ["-c", script, argument]}, "stdin": False}).encode()
        answer = await self.http.post(
            "/process.Process/Start",
            content=b"\0" + struct.pack(">I", len(request)) + request,
            headers={
                "Content-Type": "application/connect+json",
                "E2b-Sandbox-Id": self.sandbox["sandboxID"],
                "E2b-Sandbox-Port": str(AGENT_PORT),
                "X-Access-Token": self.sandbox["envdAccessToken"],
            },
        )
        if answer.status_code != 200:
            raise Wrong(f"Start: {answer.status_code} {answer.text}")
        output, ended, rest = b"", None, answer.content
        while rest:
            length = struct.unpack(">I", rest[1:5])[0]
            message, rest = json.loads(rest[5 : 5 + length]), rest[5 + length :]
            event = message.get("event", {})
            output += base64.b64decode(event.get("data", {}).get("stdout", ""))
            ended = event.get("end", ended)
            if "error" in message:
                raise Wrong(f"Start: {message}")
        if not ended or not ended.get("exited") or ended.get("exitCode", 0) != 0:
            raise Wrong(f"Start: {answer.content!r}")
        return output.decode()

    async def pause(self) -> None:
        await self.api("POST", f"/sandboxes/{self.sandbox['sandboxID']}/pause", None, (204,))

    async def resume(self) -> None:
        path = f"/v2/sandboxes/{self.sandbox['sandboxID']}/connect"

        async def ask() -> bool:
            answer = await self.api("POST", path, {"timeout": SANDBOX_SECONDS}, (201, 429))
            if answer.status_code == 429:
                return False
            self.sandbox = answer.json()
            return True

        await self.allowed("resume", ask)

    async def kill(self) -> None:
        await self.api("DELETE", f"/sandboxes/{self.sandbox['sandboxID']}", None, (204,))


class SdkClient(Client):
    """Uses the published SDK. Its own retries are off: they would hide what is refused."""

    sandbox: AsyncSandbox

    async def create(self) -> None:
        async def ask() -> bool:
            try:
                self.sandbox = await AsyncSandbox.create(
                    TEMPLATE, timeout=SANDBOX_SECONDS, request_timeout=REQUEST_SECONDS, retries=0
                )
            except RateLimitException:
                return False
            return True

        await self.allowed("create", ask)

    async def run(self, script: str, argument: str) -> str:
        command = f"sh -c '{script}' {argument}"
        result = await self.sandbox.commands.run(command, timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS)
        return result.stdout

    async def pause(self) -> None:
        if not await self.sandbox.pause(request_timeout=REQUEST_SECONDS):
            raise Wrong("pause says that the sandbox was paused already")

    async def resume(self) -> None:
        async def ask() -> bool:
            try:
                self.sandbox = await AsyncSandbox.connect(
                    self.sandbox.sandbox_id, timeout=SANDBOX_SECONDS, request_timeout=REQUEST_SECONDS, retries=0
                )
            except RateLimitException:
                return False
            return True

        await self.allowed("resume", ask)

    async def kill(self) -> None:
        if not await self.sandbox.kill(request_timeout=REQUEST_SECONDS):
            raise Wrong("kill says that there is no such sandbox")


async def load(url: str, key: str, clients: int, seconds: float, tally: Tally) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(
        base_url=url, headers={"X-API-Key": key}, timeout=REQUEST_SECONDS, limits=limits
    ) as http:
        until = time.monotonic() + seconds
        all_clients = [
            SdkClient(tally, number, until) if number % 10 == 9 else PlainClient(tally, number, until, http)
            for number in range(clients)
        ]
        work = [asyncio.create_task(client.work()) for client in all_clients]
        while time.monotonic() < until and not all(task.done() for task in work):
            await asyncio.sleep(min(30, max(until - time.monotonic(), 0)))
            print(
                f"  ... {max(0, until - time.monotonic()):4.0f} s left: {tally.cycles} cycles, "
                f"{sum(tally.refused.values())} refused for now, {len(tally.failures)} failures",
                flush=True,
            )
        await asyncio.gather(*work)
        left = (await http.get("/v2/sandboxes")).json()
        if left:
            tally.failures.append(f"sandboxes are listed that every client has killed: {left}")


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def report(tally: Tally, minutes: float) -> None:
    print(f"\n{tally.cycles} cycles in {minutes:g} minutes and what it took to end them")
    for step, count in tally.refused.items():
        print(f"{step}: refused for now (429) {count} times")
    print(f"{'step':10} {'times':>7} {'p50 ms':>9} {'p99 ms':>9} {'max ms':>9}")
    for step, seconds in tally.seconds.items():
        milliseconds = [1000 * percentile(seconds, percent) for percent in (50, 99)]
        print(f"{step:10} {len(seconds):7} {milliseconds[0]:9.0f} {milliseconds[1]:9.0f} {1000 * max(seconds):9.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--max-running", type=int, default=15)
    options = parser.parse_args()

    os.environ["TORPOR_MAX_RUNNING"] = str(options.max_running)
    server = Server(data_dir())
    server.start()
    try:
        os.environ.update(server.environment())
        # Once around, so that pools and caches of the server are as large as they get.
        warm = Tally()
        asyncio.run(load(server.url, server.api_key, options.max_running, 10, warm))
        name = instance(server.data)

        def look() -> dict[str, int]:
            return footprint(server.data, name, server.pid)

        stable: list[dict[str, int]] = []

        def is_stable(found: dict[str, int]) -> bool:
            stable.append(found)
            # The kernel takes links down some time after the namespace they led to.
            complete = found["network links"] == found["network namespaces"]
            return complete and len(stable) >= 10 and all(other == found for other in stable[-10:])

        before = settled(look, is_stable, SETTLE_SECONDS)
        before_threads, before_kib = threads(server.pid), resident_kib(server.pid)

        tally = Tally()
        asyncio.run(load(server.url, server.api_key, options.clients, options.minutes * 60, tally))
        report(tally, options.minutes)

        after = settled(look, lambda found: not difference(before, found, TOLERANCE), SETTLE_SECONDS)
        leaks = difference(before, after, TOLERANCE)
        print(f"\nthe server before and after: {before_threads} and {threads(server.pid)} threads, ", end="")
        print(f"{before_kib >> 10} and {resident_kib(server.pid) >> 10} MiB resident")
        for what in sorted(before):
            print(f"  {what}: {before[what]} and {after.get(what, 0)}")
    finally:
        server.stop()

    failures = warm.failures + tally.failures
    for failure in failures[:50]:
        print(f"failure: {failure}")
    for leak in leaks:
        print(f"left behind: {leak}")
    print(f"{tally.cycles} cycles, {len(failures)} failures, {len(leaks)} left behind")
    return 1 if failures or leaks or not tally.cycles else 0


if __name__ == "__main__":
    sys.exit(main())

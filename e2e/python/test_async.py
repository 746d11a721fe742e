"""The asynchronous SDK: the same server, another client."""

import asyncio

import pytest
from e2b import (
    AsyncSandbox,
    CommandExitException,
    NotFoundException,
    PtySize,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

from support import DEADLINE_SECONDS


async def test_commands_give_output_exit_codes_and_streams(async_sandbox):
    seen = []
    result = await async_sandbox.commands.run("echo out; echo err >&2", on_stdout=seen.append)
    assert (result.stdout, result.stderr, seen) == ("out\n", "err\n", ["out\n"])
    with pytest.raises(CommandExitException) as failure:
        await async_sandbox.commands.run("exit 9")
    assert failure.value.exit_code == 9


async def test_background_commands_take_input_are_listed_and_killed(async_sandbox):
    cat = await async_sandbox.commands.run("cat", background=True, stdin=True)
    await cat.send_stdin("typed\n")
    await cat.close_stdin()
    assert (await cat.wait()).stdout == "typed\n"
    sleeper = await async_sandbox.commands.run("sleep 1000", background=True)
    assert sleeper.pid in {process.pid for process in await async_sandbox.commands.list()}
    assert await sleeper.kill() is True
    with pytest.raises(CommandExitException):
        await sleeper.wait()


async def test_a_command_over_its_timeout_raises(async_sandbox):
    with pytest.raises(TimeoutException):
        await async_sandbox.commands.run("sleep 1000", timeout=2)


async def test_a_client_attaches_to_a_running_command(async_sandbox):
    handle = await async_sandbox.commands.run("while [ ! -e /tmp/go ]; do sleep 0.05; done; echo went", background=True)
    await handle.disconnect()
    attached = await async_sandbox.commands.connect(handle.pid)
    await async_sandbox.files.write("/tmp/go", "")
    assert (await attached.wait()).stdout == "went\n"


async def test_twenty_commands_at_once(async_sandbox):
    results = await asyncio.gather(*(async_sandbox.commands.run(f"echo {n}") for n in range(20)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]


async def test_files_are_written_listed_and_read(async_sandbox):
    await async_sandbox.files.write("dir/text.txt", "žluťoučký")
    assert await async_sandbox.files.read("dir/text.txt") == "žluťoučký"
    await async_sandbox.files.write("dir/data.bin", b"\x00\xff" * 1000)
    assert bytes(await async_sandbox.files.read("dir/data.bin", format="bytes")) == b"\x00\xff" * 1000
    assert {entry.name for entry in await async_sandbox.files.list("dir")} == {"text.txt", "data.bin"}
    stream = await async_sandbox.files.read("dir/data.bin", format="stream")
    assert b"".join([chunk async for chunk in stream]) == b"\x00\xff" * 1000
    await async_sandbox.files.remove("dir")
    assert not await async_sandbox.files.exists("dir")
    with pytest.raises(NotFoundException):
        await async_sandbox.files.read("dir/text.txt")


async def test_a_terminal_is_used_left_and_found_again(async_sandbox):
    seen = b""
    printed = asyncio.Event()
    wanted = b"set-42"

    def on_data(data: bytes):
        nonlocal seen
        seen += data
        if wanted in seen:
            printed.set()

    async def say(terminal, line: bytes, until: bytes):
        nonlocal wanted, seen
        wanted, seen = until, b""
        printed.clear()
        await async_sandbox.pty.send_stdin(terminal.pid, line)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await printed.wait()

    terminal = await async_sandbox.pty.create(PtySize(rows=24, cols=80), on_data=on_data, timeout=0)
    await say(terminal, b"colour=violet; echo set-$((40 + 2))\n", b"set-42")
    await async_sandbox.pty.resize(terminal.pid, PtySize(rows=30, cols=90))
    await say(terminal, b'echo "size:$(stty size)"\n', b"size:30 90")
    await terminal.disconnect()
    again = await async_sandbox.pty.connect(terminal.pid, on_data=on_data, timeout=0)
    await say(again, b'echo "still-$colour"\n', b"still-violet")
    await again.disconnect()
    assert await async_sandbox.pty.kill(terminal.pid) is True


async def test_pause_list_connect_and_kill(async_sandbox):
    await async_sandbox.files.write("note.txt", "kept")
    assert await async_sandbox.is_running()
    assert await async_sandbox.pause() is True
    assert await async_sandbox.pause() is False
    assert not await async_sandbox.is_running()
    pages = AsyncSandbox.list(query=SandboxQuery(state=[SandboxState.PAUSED]))
    paused = set()
    while pages.has_next:
        paused |= {info.sandbox_id for info in await pages.next_items()}
    assert async_sandbox.sandbox_id in paused
    same = await AsyncSandbox.connect(async_sandbox.sandbox_id, timeout=60)
    assert await same.files.read("note.txt") == "kept"
    assert await same.kill() is True
    assert not await same.is_running()


async def test_five_sandboxes_live_side_by_side(server):
    made = await asyncio.gather(*(AsyncSandbox.create(timeout=300) for _ in range(5)))
    try:
        await asyncio.gather(*(s.commands.run(f"echo {n} > /tmp/number") for n, s in enumerate(made)))
        await asyncio.gather(*(s.pause() for s in made))
        woken = await asyncio.gather(*(AsyncSandbox.connect(s.sandbox_id, timeout=300) for s in made))
        numbers = await asyncio.gather(*(s.files.read("/tmp/number") for s in woken))
        assert numbers == [f"{n}\n" for n in range(5)]
    finally:
        await asyncio.gather(*(s.kill() for s in made))

"""Watching directories: polled (synchronous SDK) and streamed (asynchronous SDK)."""

import asyncio

import pytest
from e2b import FilesystemEventType, NotFoundException, SandboxException

from support import DEADLINE_SECONDS, wait_for


def collect(handle, wanted: set[tuple[str, FilesystemEventType]]):
    """Polls until every wanted event has been seen; returns all events seen by then."""
    seen = []

    def all_there():
        seen.extend((event.name, event.type) for event in handle.get_new_events())
        return wanted <= set(seen)

    wait_for(all_there, f"the events {wanted}; seen: {seen}")
    return seen


def test_writing_changing_renaming_and_removing_are_reported(sandbox):
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched")
    sandbox.files.write("watched/a.txt", "1")
    collect(handle, {("a.txt", FilesystemEventType.CREATE), ("a.txt", FilesystemEventType.WRITE)})
    sandbox.commands.run("chmod 600 watched/a.txt")
    collect(handle, {("a.txt", FilesystemEventType.CHMOD)})
    sandbox.files.rename("watched/a.txt", "watched/b.txt")
    collect(handle, {("a.txt", FilesystemEventType.RENAME), ("b.txt", FilesystemEventType.CREATE)})
    sandbox.files.remove("watched/b.txt")
    collect(handle, {("b.txt", FilesystemEventType.REMOVE)})
    handle.stop()


def test_an_event_is_given_once(sandbox):
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched")
    sandbox.files.make_dir("watched/only")
    collect(handle, {("only", FilesystemEventType.CREATE)})
    sandbox.files.make_dir("watched/other")
    later = collect(handle, {("other", FilesystemEventType.CREATE)})
    assert ("only", FilesystemEventType.CREATE) not in later
    handle.stop()


def test_a_stopped_watcher_gives_no_more(sandbox):
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched")
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()


def test_a_recursive_watch_sees_directories_made_later(sandbox):
    sandbox.files.make_dir("watched/old")
    handle = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/old/x.txt", "1")
    collect(handle, {("old/x.txt", FilesystemEventType.WRITE)})
    sandbox.files.make_dir("watched/new")
    collect(handle, {("new", FilesystemEventType.CREATE)})
    sandbox.files.write("watched/new/y.txt", "1")
    collect(handle, {("new/y.txt", FilesystemEventType.WRITE)})
    handle.stop()


def test_a_watch_that_is_not_recursive_sees_only_its_own_directory(sandbox):
    sandbox.files.make_dir("watched/sub")
    handle = sandbox.files.watch_dir("watched")
    sandbox.files.write("watched/sub/hidden.txt", "1")
    sandbox.files.write("watched/seen.txt", "1")
    seen = collect(handle, {("seen.txt", FilesystemEventType.WRITE)})
    assert not any("hidden" in name for name, _ in seen)
    handle.stop()


def test_events_carry_information_about_the_entry_when_asked(sandbox):
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched", include_entry=True)
    sandbox.files.write("watched/a.txt", "four")
    entries = []

    def written():
        entries.extend(e.entry for e in handle.get_new_events() if e.type == FilesystemEventType.WRITE and e.entry)
        return entries

    wait_for(written, "an event with its entry")
    assert entries[-1].path == "/home/user/watched/a.txt"
    handle.stop()


def test_watching_nothing_or_a_file_is_refused(sandbox):
    with pytest.raises(NotFoundException):
        sandbox.files.watch_dir("/home/user/nowhere")
    sandbox.files.write("plain", "x")
    with pytest.raises(SandboxException):
        sandbox.files.watch_dir("plain")


def test_a_watch_goes_on_after_a_pause(sandbox):
    from e2b import Sandbox

    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched")
    sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id, timeout=300)
    sandbox.files.write("watched/after.txt", "1")
    collect(handle, {("after.txt", FilesystemEventType.WRITE)})
    handle.stop()


async def test_events_are_streamed_as_they_happen(async_sandbox):
    await async_sandbox.files.make_dir("watched")
    seen: asyncio.Queue = asyncio.Queue()
    handle = await async_sandbox.files.watch_dir("watched", on_event=seen.put_nowait, timeout=0)
    await async_sandbox.files.write("watched/a.txt", "1")
    wanted = {("a.txt", FilesystemEventType.CREATE), ("a.txt", FilesystemEventType.WRITE)}
    async with asyncio.timeout(DEADLINE_SECONDS):
        while wanted:
            event = await seen.get()
            wanted.discard((event.name, event.type))
    await handle.stop()


async def test_a_streamed_watch_is_recursive_when_asked(async_sandbox):
    await async_sandbox.files.make_dir("watched/sub")
    seen: asyncio.Queue = asyncio.Queue()
    handle = await async_sandbox.files.watch_dir("watched", on_event=seen.put_nowait, timeout=0, recursive=True)
    await async_sandbox.files.write("watched/sub/deep.txt", "1")
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (event := await seen.get()).name != "sub/deep.txt":
            pass
    assert event.type in FilesystemEventType
    await handle.stop()

"""Creating, listing, timing out, pausing, connecting and killing, through the synchronous SDK."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from e2b import (
    NotFoundException,
    Sandbox,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

from support import api, listed, together, wait_for


def aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def test_a_new_sandbox_runs_and_says_what_it_is(sandboxes):
    before = datetime.now(UTC)
    sandbox = sandboxes(timeout=600, metadata={"purpose": "facts"})
    after = datetime.now(UTC)
    assert sandbox.is_running()
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.state == SandboxState.RUNNING
    assert info.metadata == {"purpose": "facts"}
    assert info.cpu_count >= 1
    assert info.memory_mb == 512
    slack = timedelta(seconds=2)
    assert before - slack <= aware(info.started_at) <= after + slack
    assert abs((aware(info.end_at) - aware(info.started_at)).total_seconds() - 600) <= 2


def test_the_template_is_found_by_its_name(sandboxes):
    assert sandboxes(template="base").commands.run("echo hi").stdout == "hi\n"


def test_ids_are_lower_case_letters_and_digits(sandbox):
    assert sandbox.sandbox_id.isalnum() and sandbox.sandbox_id == sandbox.sandbox_id.lower()


def test_without_a_timeout_a_sandbox_lives_for_300_seconds(sandboxes):
    info = sandboxes(timeout=None).get_info()
    assert abs((aware(info.end_at) - aware(info.started_at)).total_seconds() - 300) <= 2


def test_a_killed_sandbox_is_gone(sandbox):
    assert sandbox.kill() is True
    assert not sandbox.is_running()
    assert sandbox.sandbox_id not in listed()
    assert sandbox.kill() is False
    with pytest.raises(NotFoundException):
        sandbox.get_info()
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


def test_killing_a_sandbox_cuts_the_streams_into_it(sandbox):
    handle = sandbox.commands.run("sleep 1000", background=True, timeout=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(handle.wait)
        sandbox.kill()
        with pytest.raises(TimeoutException):
            waiting.result(timeout=60)


def test_a_paused_sandbox_can_be_killed(sandbox):
    sandbox.pause()
    assert Sandbox.kill(sandbox.sandbox_id) is True
    assert sandbox.sandbox_id not in listed()


def test_the_first_pause_says_true_and_the_second_false(sandbox):
    assert sandbox.pause() is True
    assert sandbox.pause() is False


def test_a_paused_sandbox_is_listed_and_described_as_paused(sandbox):
    sandbox.pause()
    assert listed()[sandbox.sandbox_id] == SandboxState.PAUSED
    assert sandbox.get_info().state == SandboxState.PAUSED
    assert not sandbox.is_running()


def test_pausing_or_describing_what_does_not_exist_is_not_found(server):
    for act in (Sandbox.pause, Sandbox.get_info, Sandbox.connect):
        with pytest.raises(NotFoundException):
            act("i" + uuid.uuid4().hex[:19])


def test_connect_answers_200_to_a_running_and_201_to_a_paused_sandbox(sandbox):
    path = f"/sandboxes/{sandbox.sandbox_id}"
    assert api("POST", f"/v2{path}/connect", {"timeout": 300}).status == 200
    assert api("POST", f"{path}/connect", {"timeout": 300}).status == 200
    assert api("POST", f"{path}/pause").status == 204
    assert api("POST", f"{path}/pause").status == 409
    resumed = api("POST", f"/v2{path}/connect", {"timeout": 300})
    assert resumed.status == 201
    assert resumed.json["sandboxID"] == sandbox.sandbox_id
    assert api("POST", f"{path}/pause", {}).status == 204
    assert api("POST", f"{path}/connect", {"timeout": 300}).status == 201
    assert api("POST", f"{path}/resume", {"timeout": 300}).status == 409
    assert api("POST", f"{path}/pause").status == 204
    assert api("POST", f"{path}/resume", {"timeout": 300}).status == 201


def test_connecting_gives_a_working_sandbox_with_the_timeout_asked_for(sandbox):
    sandbox.pause()
    same = Sandbox.connect(sandbox.sandbox_id, timeout=120)
    assert same.sandbox_id == sandbox.sandbox_id
    assert same.commands.run("echo awake").stdout == "awake\n"
    remaining = (aware(same.get_info().end_at) - datetime.now(UTC)).total_seconds()
    assert 60 <= remaining <= 121


def test_connecting_to_a_running_sandbox_never_shortens_its_life(sandboxes):
    sandbox = sandboxes(timeout=900)
    Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert (aware(sandbox.get_info().end_at) - datetime.now(UTC)).total_seconds() > 700


def test_concurrent_pauses_join_and_so_do_concurrent_connects(sandbox):
    path = f"/sandboxes/{sandbox.sandbox_id}"
    paused = together(5, lambda _: api("POST", f"{path}/pause").status)
    assert set(paused) <= {204, 409} and 204 in paused
    connected = together(5, lambda _: api("POST", f"/v2{path}/connect", {}).status)
    assert set(connected) <= {200, 201} and 201 in connected
    assert sandbox.commands.run("echo fine").stdout == "fine\n"


def test_a_timeout_can_be_set_longer_and_shorter(sandbox):
    for seconds in (1200, 120):
        sandbox.set_timeout(seconds)
        remaining = (aware(sandbox.get_info().end_at) - datetime.now(UTC)).total_seconds()
        assert seconds - 60 <= remaining <= seconds + 1


def test_a_sandbox_is_killed_when_its_time_is_up(sandbox):
    sandbox.set_timeout(1)
    wait_for(lambda: sandbox.sandbox_id not in listed(), "the sandbox to expire")
    assert not sandbox.is_running()


def test_a_sandbox_made_to_pause_at_its_timeout_keeps_everything(sandboxes):
    sandbox = sandboxes(lifecycle={"on_timeout": "pause"})
    handle = sandbox.commands.run("sleep 1000", background=True, timeout=0)
    handle.disconnect()
    sandbox.files.write("kept.txt", "kept")
    sandbox.set_timeout(1)
    wait_for(lambda: listed().get(sandbox.sandbox_id) == SandboxState.PAUSED, "the sandbox to be paused")
    same = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert same.files.read("kept.txt") == "kept"
    assert handle.pid in {process.pid for process in same.commands.list()}


def test_a_timeout_survives_the_pause_as_policy_not_as_time(sandboxes):
    # Paused at its timeout, resumed, and paused at its timeout again: on_timeout is part of the sandbox.
    sandbox = sandboxes(lifecycle={"on_timeout": "pause"})
    for _ in range(2):
        sandbox.set_timeout(1)
        wait_for(lambda: listed().get(sandbox.sandbox_id) == SandboxState.PAUSED, "the sandbox to be paused")
        Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert sandbox.commands.run("echo here").stdout == "here\n"


def test_the_listing_filters_by_metadata_and_state(sandboxes):
    mark = uuid.uuid4().hex
    first = sandboxes(metadata={"mark": mark, "which one": "a & b=c"})
    second = sandboxes(metadata={"mark": mark, "which one": "other"})
    second.pause()
    both = listed(query=SandboxQuery(metadata={"mark": mark}))
    assert both == {first.sandbox_id: SandboxState.RUNNING, second.sandbox_id: SandboxState.PAUSED}
    one = listed(query=SandboxQuery(metadata={"mark": mark, "which one": "a & b=c"}))
    assert set(one) == {first.sandbox_id}
    paused = listed(query=SandboxQuery(metadata={"mark": mark}, state=[SandboxState.PAUSED]))
    assert set(paused) == {second.sandbox_id}
    running = listed(query=SandboxQuery(metadata={"mark": mark}, state=[SandboxState.RUNNING]))
    assert set(running) == {first.sandbox_id}
    assert listed(query=SandboxQuery(metadata={"mark": "nobody's"})) == {}


def test_the_listing_pages_newest_first_over_running_and_paused(sandboxes):
    mark = uuid.uuid4().hex
    made = [sandboxes(metadata={"mark": mark}).sandbox_id for _ in range(5)]
    Sandbox.pause(made[1])
    Sandbox.pause(made[3])
    query = SandboxQuery(metadata={"mark": mark})
    pages = Sandbox.list(query=query, limit=2)
    sizes, seen = [], []
    while pages.has_next:
        page = pages.next_items()
        sizes.append(len(page))
        seen.extend(info.sandbox_id for info in page)
    assert sizes == [2, 2, 1]
    assert seen == made[::-1]
    assert list(listed(query=query, limit=3, order="asc")) == made


def test_templates_filter_the_listing(sandbox):
    assert sandbox.sandbox_id in listed(query=SandboxQuery(template="base"))
    assert listed(query=SandboxQuery(template="no-such-template")) == {}


def test_two_sandboxes_share_nothing(sandboxes):
    one, two = sandboxes(), sandboxes()
    one.files.write("secret.txt", "one's")
    assert not two.files.exists("secret.txt")
    two.files.write("secret.txt", "two's")
    assert one.files.read("secret.txt") == "one's"


def test_creating_many_at_once_gives_each_its_own(sandboxes):
    made = together(6, lambda _: sandboxes())
    assert len({sandbox.sandbox_id for sandbox in made}) == 6
    for number, sandbox in enumerate(made):
        sandbox.files.write("number", str(number))
    assert [sandbox.files.read("number") for sandbox in made] == [str(number) for number in range(6)]


def test_an_expired_timeout_does_not_cut_a_sandbox_that_was_extended(sandbox):
    sandbox.set_timeout(3)
    sandbox.set_timeout(600)
    expired = time.monotonic() + 4
    wait_for(lambda: time.monotonic() > expired, "the first timeout to have passed")
    assert sandbox.commands.run("echo alive").stdout == "alive\n"

"""Commands, through the synchronous SDK."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2b import CommandExitException, NotFoundException, SandboxException, TimeoutException

from support import together, wait_for


def test_a_command_gives_its_output_and_exit_code(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)


def test_a_failing_command_raises_with_its_exit_code_and_output(sandbox):
    with pytest.raises(CommandExitException) as failure:
        sandbox.commands.run("echo before; echo why >&2; exit 7")
    assert failure.value.exit_code == 7
    assert failure.value.stdout == "before\n"
    assert failure.value.stderr == "why\n"


def test_a_command_killed_by_a_signal_does_not_count_as_success(sandbox):
    with pytest.raises(CommandExitException) as failure:
        sandbox.commands.run("kill -TERM $$")
    assert failure.value.exit_code != 0


def test_output_arrives_while_the_command_is_still_running(sandbox):
    # The command ends only after a file that this side creates once it has seen the first line.
    seen = []

    def on_stdout(text):
        seen.append(text)
        if len(seen) == 1:
            sandbox.files.write("/tmp/go", "")

    result = sandbox.commands.run(
        "echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo second", on_stdout=on_stdout
    )
    assert "".join(seen) == result.stdout == "first\nsecond\n"


def test_a_megabyte_of_output_arrives_whole(sandbox):
    result = sandbox.commands.run("seq 1 150000")
    expected = "".join(f"{n}\n" for n in range(1, 150001))
    assert len(result.stdout) == len(expected)
    assert hashlib.sha256(result.stdout.encode()).digest() == hashlib.sha256(expected.encode()).digest()


def test_characters_of_several_bytes_survive_being_cut_between_chunks(sandbox):
    result = sandbox.commands.run("for i in $(seq 2000); do printf 'žluťoučký kůň 🐎 '; done")
    assert result.stdout == "žluťoučký kůň 🐎 " * 2000


def test_standard_input_is_fed_and_closed(sandbox):
    handle = sandbox.commands.run("wc -c", background=True, stdin=True)
    handle.send_stdin("12345")
    handle.send_stdin("67890\n")
    handle.close_stdin()
    assert handle.wait().stdout.strip() == "11"


def test_standard_input_can_be_streamed(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.stream_input(handle.pid, (f"line {n}\n" for n in range(100)))
    handle.close_stdin()
    assert handle.wait().stdout == "".join(f"line {n}\n" for n in range(100))


def test_without_stdin_a_command_reads_end_of_file_at_once(sandbox):
    assert sandbox.commands.run("cat; echo done").stdout == "done\n"


def test_a_background_command_is_listed_and_can_be_killed(sandbox):
    handle = sandbox.commands.run("sleep 1000", background=True)
    running = {process.pid: process for process in sandbox.commands.list()}
    assert handle.pid in running
    assert any("sleep 1000" in argument for argument in running[handle.pid].args)

    assert sandbox.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException):
        handle.wait()
    wait_for(
        lambda: handle.pid not in {process.pid for process in sandbox.commands.list()}, "the process to leave the list"
    )
    assert sandbox.commands.kill(handle.pid) is False


def test_only_commands_that_a_client_started_are_listed(sandbox):
    handle = sandbox.commands.run("sleep 999 & sleep 1000", background=True)
    assert {process.pid for process in sandbox.commands.list()} == {handle.pid}


def test_a_second_client_attaches_to_a_running_command(sandbox):
    handle = sandbox.commands.run("while [ ! -e /tmp/go ]; do sleep 0.05; done; echo finished; exit 3", background=True)
    handle.disconnect()
    attached = sandbox.commands.connect(handle.pid)
    assert attached.pid == handle.pid
    sandbox.files.write("/tmp/go", "")
    with pytest.raises(CommandExitException) as failure:
        attached.wait()
    assert failure.value.exit_code == 3
    assert failure.value.stdout == "finished\n"


def test_attaching_to_a_process_that_does_not_exist_is_not_found(sandbox):
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(999999)


def test_two_clients_both_see_the_output_of_one_command(sandbox):
    handle = sandbox.commands.run("while [ ! -e /tmp/go ]; do sleep 0.05; done; echo both", background=True)
    attached = sandbox.commands.connect(handle.pid)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(h.wait) for h in (handle, attached)]
        sandbox.files.write("/tmp/go", "")
        assert [result.result(timeout=60).stdout for result in waiting] == ["both\n", "both\n"]


def test_a_command_over_its_timeout_is_killed(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("echo $$ > /tmp/pid; exec sleep 1000", timeout=3)
    pid = sandbox.files.read("/tmp/pid").strip()
    wait_for(
        lambda: sandbox.commands.run(f"test -e /proc/{pid} && echo there || echo gone").stdout == "gone\n",
        "the command to be killed",
    )


def test_a_timeout_of_zero_means_no_limit(sandbox):
    handle = sandbox.commands.run("sleep 2; echo done", background=True, timeout=0)
    assert handle.wait().stdout == "done\n"


def test_environment_variables_of_the_call_reach_the_command(sandbox):
    assert sandbox.commands.run('echo "$GREETING"', envs={"GREETING": "good day"}).stdout == "good day\n"


def test_environment_variables_of_the_sandbox_reach_every_command_and_the_call_wins(sandboxes):
    sandbox = sandboxes(envs={"COLOUR": "violet", "SHAPE": "round"})
    result = sandbox.commands.run('echo "$COLOUR $SHAPE"', envs={"SHAPE": "square"})
    assert result.stdout == "violet square\n"


def test_a_sandbox_knows_that_it_is_one_and_which(sandbox):
    result = sandbox.commands.run('echo "$E2B_SANDBOX $E2B_SANDBOX_ID"')
    assert result.stdout == f"true {sandbox.sandbox_id}\n"


def test_a_command_starts_in_the_home_directory_or_where_it_is_told_to(sandbox):
    assert sandbox.commands.run("pwd").stdout == "/home/user\n"
    assert sandbox.commands.run("pwd", cwd="/usr/lib").stdout == "/usr/lib\n"


def test_a_working_directory_that_does_not_exist_is_refused(sandbox):
    with pytest.raises(SandboxException, match="/no/such/place"):
        sandbox.commands.run("pwd", cwd="/no/such/place")


def test_commands_run_as_user_and_as_root_when_asked(sandbox):
    assert sandbox.commands.run("id -un; id -u").stdout == "user\n1000\n"
    assert sandbox.commands.run("id -un; id -u", user="root").stdout == "root\n0\n"


def test_user_may_use_sudo_without_a_password(sandbox):
    assert sandbox.commands.run("sudo -n id -u").stdout == "0\n"


def test_a_user_that_does_not_exist_is_refused(sandbox):
    with pytest.raises(Exception, match="nobody-by-that-name"):
        sandbox.commands.run("true", user="nobody-by-that-name")


def test_the_template_has_the_promised_programs(sandbox):
    programs = "python3 pip3 node npm git curl sudo ps gcc make tput"
    assert sandbox.commands.run(f"for p in {programs}; do command -v $p >/dev/null || echo $p; done").stdout == ""
    assert sandbox.commands.run("python3 -c 'import venv, ensurepip'").exit_code == 0
    assert sandbox.commands.run("LC_ALL=C.UTF-8 locale charmap").stdout == "UTF-8\n"


def test_many_commands_at_once_do_not_mix_their_output(sandbox):
    results = together(10, lambda number: sandbox.commands.run(f"for i in 1 2 3 4 5; do echo {number}; done").stdout)
    assert results == [f"{number}\n" * 5 for number in range(10)]


def test_a_sandbox_reaps_the_orphans_that_commands_leave(sandbox):
    sandbox.commands.run("for i in $(seq 20); do (setsid sh -c 'exit 0' &) ; done")
    wait_for(
        lambda: sandbox.commands.run("ps -eo stat= | grep -c '^Z' || true").stdout.strip() == "0",
        "every orphan to be reaped",
    )

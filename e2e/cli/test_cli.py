"""The newest `@e2b/cli`, driven as a person drives it."""

import json
import time

from terminal import DEADLINE_SECONDS, ended


def listed(e2b, state: str = "running,paused") -> dict[str, str]:
    """Every sandbox the listing shows: id to state."""
    answer = e2b.piped("sandbox", "list", "--state", state, "--format", "json")
    assert answer.returncode == 0, answer
    return {sandbox["sandboxId"]: sandbox["state"] for sandbox in json.loads(answer.stdout)}


def shows(e2b, wanted: str, *arguments: str) -> str:
    """Runs a command again and again until it shows what is wanted."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        shown = e2b.run(*arguments)
        assert shown.code == 0, shown
        if wanted in shown.text:
            return shown.text
        assert time.monotonic() < deadline, f"waited for {wanted!r} in {shown.text!r}"


def test_create_opens_a_shell_in_a_new_sandbox_and_ends_it_with_the_shell(e2b):
    terminal = e2b.start("sandbox", "create", "base")
    terminal.expect("Terminal connecting to template")
    terminal.expect(r"\$ ")
    sandbox_id = e2b.remember(terminal.before)
    assert listed(e2b)[sandbox_id] == "running"
    terminal.sendline("echo result-$((20 + 3)); stty size")
    terminal.expect("result-23")
    terminal.expect("50 250")
    terminal.sendline("exit")
    terminal.expect("Closing terminal connection to template")
    assert ended(terminal).code == 0


def test_create_takes_a_user_a_directory_and_variables(e2b):
    terminal = e2b.start("sandbox", "create", "-u", "root", "-c", "/usr/lib", "-e", "COLOUR=violet")
    terminal.expect("# ")
    e2b.remember(terminal.before)
    terminal.sendline('echo "<$(id -un) $PWD $COLOUR>"')
    terminal.expect("<root /usr/lib violet>")
    terminal.sendline("exit")
    assert ended(terminal).code == 0


def test_connect_opens_a_shell_in_a_running_sandbox_and_leaves_it_running(e2b, sandbox_id):
    assert e2b.run("sandbox", "exec", sandbox_id, "touch", "was-here").code == 0
    terminal = e2b.start("sandbox", "connect", sandbox_id)
    terminal.expect("Terminal connecting to sandbox")
    terminal.expect(r"\$ ")
    terminal.sendline("ls")
    terminal.expect(r"was-here\s.*\$ ")
    terminal.sendcontrol("d")
    terminal.expect("Closing terminal connection to sandbox")
    assert ended(terminal).code == 0
    assert listed(e2b)[sandbox_id] == "running"


def test_exec_gives_output_and_exit_code(e2b, sandbox_id):
    shown = e2b.run("sandbox", "exec", sandbox_id, "echo", "hello there")
    assert (shown.code, shown.text) == (0, "hello there\n")
    answer = e2b.piped("sandbox", "exec", sandbox_id, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (answer.returncode, answer.stdout) == (7, b"out\n")
    # The command line adds how the command ended.
    assert answer.stderr == b"err\nexit status 7\n", answer


def test_exec_takes_a_user_a_directory_and_variables(e2b, sandbox_id):
    options = ("-u", "root", "-c", "/usr", "-e", "COLOUR=violet")
    shown = e2b.run("sandbox", "exec", *options, sandbox_id, "sh", "-c", 'echo "$(id -un) $PWD $COLOUR"')
    assert (shown.code, shown.text) == (0, "root /usr violet\n")


def test_exec_passes_on_what_is_piped_into_it(e2b, sandbox_id):
    text = b"".join(b"line %d\n" % number for number in range(10_000))
    answer = e2b.piped("sandbox", "exec", sandbox_id, "cat", stdin=text)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == text


def test_exec_leaves_a_command_in_the_background(e2b, sandbox_id):
    answer = e2b.piped("sandbox", "exec", "-b", sandbox_id, "sleep", "1000")
    assert answer.returncode == 0, answer
    pid = answer.stderr.decode().strip()
    shown = e2b.run("sandbox", "exec", sandbox_id, "cat", f"/proc/{pid}/comm")
    assert shown.code == 0, shown


def test_exec_in_a_sandbox_that_does_not_exist_fails_and_says_so(e2b):
    shown = e2b.run("sandbox", "exec", "i0000000000000000000", "true")
    assert shown.code == 1
    assert "not found" in shown.text.lower(), shown.text


def test_list_shows_a_table_and_json(e2b, sandbox_id):
    shown = e2b.run("sandbox", "list")
    assert shown.code == 0
    row = next(line for line in shown.text.splitlines() if sandbox_id in line)
    assert "base" in row, row
    assert listed(e2b, "running")[sandbox_id] == "running"
    assert sandbox_id not in listed(e2b, "paused")
    newest = e2b.piped("sandbox", "list", "--limit", "1", "--template", "base", "--order", "desc", "--format", "json")
    assert [sandbox["sandboxId"] for sandbox in json.loads(newest.stdout)] == [sandbox_id]


def test_info_describes_a_sandbox_to_people_and_programs(e2b, sandbox_id):
    shown = e2b.run("sandbox", "info", sandbox_id)
    assert shown.code == 0
    for fact in (sandbox_id, "running", "RAM MiB"):
        assert fact in shown.text, shown.text
    info = json.loads(e2b.piped("sandbox", "info", sandbox_id, "--format", "json").stdout)
    assert (info["sandboxId"], info["state"], info["memoryMB"]) == (sandbox_id, "running", 512)
    missing = e2b.run("sandbox", "info", "i0000000000000000000")
    assert missing.code == 1 and "wasn't found" in missing.text, missing


def test_pause_and_resume_keep_what_runs(e2b, sandbox_id):
    pid = e2b.piped("sandbox", "exec", "-b", sandbox_id, "sleep", "1000").stderr.decode().strip()
    paused = e2b.run("sandbox", "pause", sandbox_id)
    assert paused.code == 0, paused
    assert listed(e2b)[sandbox_id] == "paused"
    resumed = e2b.run("sandbox", "resume", sandbox_id)
    assert resumed.code == 0, resumed
    assert listed(e2b)[sandbox_id] == "running"
    assert e2b.run("sandbox", "exec", sandbox_id, "test", "-d", f"/proc/{pid}").code == 0


def test_a_pause_of_what_is_paused_and_of_what_is_not_there_is_told_apart(e2b, sandbox_id):
    assert e2b.run("sandbox", "pause", sandbox_id).code == 0
    assert "already paused" in e2b.run("sandbox", "pause", sandbox_id).text
    assert "wasn't found" in e2b.run("sandbox", "pause", "i0000000000000000000").text


def test_kill_takes_several_and_says_what_was_not_there(e2b):
    first, second = e2b.make(), e2b.make()
    shown = e2b.run("sandbox", "kill", first, second, "i0000000000000000000")
    assert shown.code == 0
    for sandbox_id in (first, second):
        assert f"Sandbox {sandbox_id} has been killed" in shown.text, shown.text
        assert sandbox_id not in listed(e2b)
    assert "i0000000000000000000 wasn't found" in shown.text, shown.text


def test_kill_all_by_metadata_kills_no_others(e2b, sandbox_id):
    shown = e2b.run("sandbox", "kill", "--all", "--metadata", "mark=nobody-has-this")
    assert shown.code == 0, shown
    assert listed(e2b)[sandbox_id] == "running"


def test_a_lifecycle_that_pauses_is_passed_on(e2b):
    sandbox_id = e2b.make("--lifecycle.ontimeout", "pause")
    info = json.loads(e2b.piped("sandbox", "info", sandbox_id, "--format", "json").stdout)
    assert info["lifecycle"]["onTimeout"] == "pause", info


def test_logs_show_what_commands_printed_to_people_and_programs(e2b, sandbox_id):
    assert e2b.run("sandbox", "exec", sandbox_id, "echo", "printed-to-the-log").code == 0
    text = shows(e2b, "'printed-to-the-log'", "sandbox", "logs", sandbox_id)
    assert "INFO" in text, text
    lines = e2b.piped("sandbox", "logs", sandbox_id, "--format", "json").stdout.splitlines()
    assert "printed-to-the-log" in [json.loads(line)["message"] for line in lines if line]
    errors = e2b.run("sandbox", "logs", sandbox_id, "--level", "ERROR")
    assert errors.code == 0 and "'printed-to-the-log'" not in errors.text, errors


def test_logs_are_followed_until_the_sandbox_is_killed(e2b, sandbox_id):
    terminal = e2b.start("sandbox", "logs", "--follow", sandbox_id)
    terminal.expect("Logs for sandbox")
    assert e2b.run("sandbox", "exec", sandbox_id, "echo", "while-it-is-followed").code == 0
    terminal.expect("'while-it-is-followed'")
    assert e2b.run("sandbox", "kill", sandbox_id).code == 0
    ended(terminal)


def test_metrics_show_what_a_sandbox_uses_to_people_and_programs(e2b, sandbox_id):
    text = shows(e2b, "CPU", "sandbox", "metrics", sandbox_id)
    assert "Memory" in text and "Disk" in text, text
    lines = e2b.piped("sandbox", "metrics", sandbox_id, "--format", "json").stdout.splitlines()
    newest = json.loads(lines[-1])
    assert newest["cpuCount"] >= 1 and 0 < newest["memUsed"] < newest["memTotal"], newest


def test_metrics_are_followed_until_the_sandbox_is_killed(e2b, sandbox_id):
    terminal = e2b.start("sandbox", "metrics", "--follow", sandbox_id)
    terminal.expect("CPU")
    assert e2b.run("sandbox", "kill", sandbox_id).code == 0
    ended(terminal)


def test_templates_are_listed(e2b):
    shown = e2b.run("template", "list")
    assert shown.code == 0, shown
    assert "base" in shown.text, shown

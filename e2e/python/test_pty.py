"""Terminals, through the synchronous SDK."""

import pytest
from e2b import NotFoundException, PtySize

from support import DEADLINE_SECONDS, read_until, type_line, wait_for


@pytest.fixture
def terminal(sandbox):
    """A terminal that nobody is attached to."""
    opened = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    opened.disconnect()
    return opened.pid


def test_a_terminal_answers_what_is_typed(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=DEADLINE_SECONDS)
    sandbox.pty.send_stdin(terminal.pid, b"echo result-$((20 + 3))\n")
    read_until(terminal, b"result-23")
    terminal.disconnect()


def test_a_terminal_keeps_its_variables_when_its_client_leaves_and_returns(sandbox, terminal):
    type_line(sandbox, terminal, "colour=violet; echo set-$((40 + 2))", until="set-42")
    type_line(sandbox, terminal, 'echo "still-$colour"', until="still-violet")


def test_a_terminal_is_a_terminal(sandbox, terminal):
    type_line(sandbox, terminal, "test -t 0 && test -t 1 && echo is-a-$TERM", until="is-a-xterm-256color")


def test_a_terminal_has_the_size_it_was_given_and_is_resized(sandbox, terminal):
    type_line(sandbox, terminal, 'echo "size:$(stty size)"', until="size:24 80")
    sandbox.pty.resize(terminal, PtySize(rows=40, cols=132))
    type_line(sandbox, terminal, 'echo "size:$(stty size)"', until="size:40 132")


def test_a_resize_is_signalled_to_the_program_in_the_terminal(sandbox, terminal):
    type_line(sandbox, terminal, "trap 'echo winch-$((1 + 1))' WINCH; echo armed-$((2 + 2))", until="armed-4")
    attached = sandbox.pty.connect(terminal, timeout=DEADLINE_SECONDS)
    sandbox.pty.resize(terminal, PtySize(rows=50, cols=100))
    sandbox.pty.send_stdin(terminal, b"\n")
    read_until(attached, b"winch-2")
    attached.disconnect()


def test_control_c_interrupts_the_program_in_the_terminal(sandbox, terminal):
    attached = sandbox.pty.connect(terminal, timeout=DEADLINE_SECONDS)
    sandbox.pty.send_stdin(terminal, b"echo sleeping-$((3 + 3)); sleep 1000; echo woke\n")
    read_until(attached, b"sleeping-6")
    sandbox.pty.send_stdin(terminal, b"\x03")
    # What is typed before the shell is back at its prompt, the interrupt may take with it.
    interrupted = read_until(attached, b"$ ")
    sandbox.pty.send_stdin(terminal, b"echo back-$((4 + 4))\n")
    assert b"\nwoke" not in interrupted + read_until(attached, b"back-8")
    attached.disconnect()


def test_a_terminal_has_its_user_directory_and_environment(sandbox):
    terminal = sandbox.pty.create(
        PtySize(rows=24, cols=200), user="root", cwd="/usr/lib", envs={"GREETING": "hello"}, timeout=DEADLINE_SECONDS
    )
    sandbox.pty.send_stdin(terminal.pid, b'echo "<$(id -un) $PWD $GREETING>"\n')
    read_until(terminal, b"<root /usr/lib hello>")
    terminal.disconnect()


def test_leaving_the_shell_ends_the_terminal_with_its_exit_code(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=DEADLINE_SECONDS)
    sandbox.pty.send_stdin(terminal.pid, b"exit 0\n")
    assert terminal.wait().exit_code == 0


def test_a_killed_terminal_is_gone(sandbox, terminal):
    assert terminal in {process.pid for process in sandbox.commands.list()}
    assert sandbox.pty.kill(terminal) is True
    wait_for(lambda: terminal not in {p.pid for p in sandbox.commands.list()}, "the terminal to leave the list")
    assert sandbox.pty.kill(terminal) is False


def test_typing_into_a_terminal_that_does_not_exist_is_not_found(sandbox):
    with pytest.raises(NotFoundException):
        sandbox.pty.send_stdin(999999, b"hello\n")


def test_terminal_input_can_be_streamed(sandbox, terminal):
    attached = sandbox.pty.connect(terminal, timeout=DEADLINE_SECONDS)
    sandbox.pty.stream_input(terminal, [b"echo ", b"streamed-", b"$((5 + 5))", b"\n"])
    read_until(attached, b"streamed-10")
    attached.disconnect()

"""Programs in a pseudo-terminal, as a person has them: what is shown is read, what is typed is echoed."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pexpect

# Software emulation is about ten times slower than hardware; a deadline only has to end a hopeless wait.
DEADLINE_SECONDS = 90
# Colours, cursor movements and links (OSC 8), which a terminal does not show.
INVISIBLE = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")
SANDBOX_ID = re.compile(r"\bi[a-z0-9]{19}\b")
# Wide enough that no table is cut and no line is wrapped.
ROWS, COLUMNS = 50, 250


@dataclass
class Shown:
    """What a program showed until it ended, without colours, and its exit code."""

    text: str
    code: int


@dataclass
class CommandLine:
    """The `e2b` program. `made` are the sandboxes that are killed when the test is over."""

    program: Path
    environment: dict[str, str]
    made: list[str] = field(default_factory=list)

    def start(self, *arguments: str) -> pexpect.spawn:
        """Starts it in a terminal, for a dialogue."""
        return pexpect.spawn(
            str(self.program),
            list(arguments),
            env=self.environment,
            encoding="utf-8",
            timeout=DEADLINE_SECONDS,
            dimensions=(ROWS, COLUMNS),
        )

    def run(self, *arguments: str) -> Shown:
        """Runs it in a terminal to its end."""
        return ended(self.start(*arguments))

    def piped(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
        """Runs it in a pipeline, as a script would."""
        return subprocess.run(
            [str(self.program), *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    def make(self, *options: str) -> str:
        """A sandbox without a terminal; its id."""
        shown = self.run("sandbox", "create", "--detach", "--timeout", "600", *options)
        assert shown.code == 0, shown
        return self.remember(shown.text)

    def remember(self, text: str) -> str:
        """The sandbox id that is shown, noted so that `clean` finds it."""
        found = SANDBOX_ID.search(plain(text))
        assert found, f"there is no sandbox id in {text!r}"
        self.made.append(found[0])
        return found[0]

    def clean(self) -> None:
        if self.made:
            self.run("sandbox", "kill", *self.made)


def ended(terminal: pexpect.spawn) -> Shown:
    """Reads a terminal to its end."""
    terminal.expect(pexpect.EOF)
    text = plain(terminal.before)
    terminal.close()
    return Shown(text, terminal.exitstatus if terminal.exitstatus is not None else -terminal.signalstatus)


def plain(text: str) -> str:
    return INVISIBLE.sub("", text).replace("\r\n", "\n")

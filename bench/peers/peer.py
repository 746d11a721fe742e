"""What the peers have in common: a workload that ticks, and two operations that are timed."""

import abc
import pathlib
import re
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
# The first tick waits for gigabytes of random data, at a tenth of native speed under software emulation.
PATIENCE_S = 600
POLL_S = 0.0005


class Failed(Exception):
    """A peer could not do its part; the text says why, from its own log."""


class Peer(abc.ABC):
    """One way to put a process with its memory away and to get it back. `work` is a directory of its own."""

    name: str
    about: str

    def __init__(self, work: pathlib.Path, live_mib: int):
        self.work, self.live_mib = work, live_mib

    @abc.abstractmethod
    def version(self) -> str:
        """Of the program that is measured."""

    @abc.abstractmethod
    def start(self) -> None:
        """Starts the workload, without waiting for it."""

    @abc.abstractmethod
    def save(self) -> None:
        """Puts the running workload away. Timed as the pause."""

    @abc.abstractmethod
    def restore(self) -> None:
        """Gets it back. Timed as the resume, up to the workload's next tick."""

    @abc.abstractmethod
    def output(self) -> bytes:
        """What the workload printed since this was called last."""

    @abc.abstractmethod
    def ask_for_sum(self) -> None:
        """Has the workload compute its checksum."""

    @abc.abstractmethod
    def end(self) -> None:
        """Ends all processes; may be called at any time."""

    def before_save(self) -> None:
        """What is not timed: removing the last image, for instance."""

    def after_save(self) -> None:
        """What is not timed, between a pause and the resume."""

    def wait_for(self, pattern: bytes) -> re.Match:
        """Waits until a line that was not looked at yet matches."""
        read, deadline = b"", time.monotonic() + PATIENCE_S
        while not (match := re.search(pattern, read, re.M)):
            if time.monotonic() > deadline:
                raise Failed(f"the workload did not say what was awaited within {PATIENCE_S} s")
            if new := self.output():
                read += new
            else:
                time.sleep(POLL_S)
        return match

    def wait_for_tick(self) -> None:
        self.wait_for(rb"^tick \d+\r?\n")

    def sum(self) -> bytes:
        return self.wait_for(rb"^sum ([0-9a-f]{16})\r?\n")[1]


class FileOutput:
    """Reads what is appended to a file."""

    def __init__(self, path: pathlib.Path):
        path.touch()
        self.file = path.open("rb")

    def read(self) -> bytes:
        return self.file.read()


def run(command: list, log: pathlib.Path, **more) -> None:
    """Runs a program whose output is kept in `log`, and quoted should it fail."""
    with log.open("wb") as output:
        done = subprocess.run([str(part) for part in command], stdout=more.pop("stdout", output), stderr=output,
                              stdin=subprocess.DEVNULL, **more)
    if done.returncode:
        raise Failed(f"`{' '.join(map(str, command))}` ended with {done.returncode}: {last_lines(log)}")


def last_lines(log: pathlib.Path, count: int = 6) -> str:
    text = log.read_text(errors="replace").strip() if log.exists() else ""
    return " | ".join(line.strip() for line in text.splitlines()[-count:])


def build_workload(directory: pathlib.Path) -> pathlib.Path:
    """A directory with nothing but the static program, fit to be a root."""
    root = directory / "root"
    root.mkdir()
    subprocess.run(["gcc", "-O2", "-static", "-o", root / "workload", HERE / "workload.c"], check=True)
    return root


def flush(directory: pathlib.Path) -> None:
    """Waits until the file system has written what it was given, so that it does not disturb what is timed next."""
    subprocess.run(["sync", "--file-system", directory], check=True)

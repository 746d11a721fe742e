"""Which releases of the SDKs are tried, what each can do, and why it cannot do the rest.

A *generation* is a range of releases whose programs look alike; each has one scenario. A *way* is how a program finds
its sandboxes: by their host names (`E2B_DOMAIN`: TLS and a wildcard name, every release), or by two URLs
(`E2B_API_URL` and `E2B_SANDBOX_URL`: plain HTTP to one address, newer releases only).
"""

import re
from dataclasses import dataclass, field

NEWEST = "newest"

WANTED = {
    "python": [
        *("1.1.0b1", "1.1.0b18", "1.2.0b0", "1.2.0b6", "1.11.1", "2.0.0", "2.6.0", "2.15.0"),
        *("2.25.1", "2.30.0", "2.34.0", "2.45.1", "2.51.0", NEWEST),
    ],
    "javascript": [
        *("1.1.0-beta.1", "1.2.0-beta.0", "1.2.0-beta.4", "2.0.0", "2.6.0", "2.15.0"),
        *("2.27.0", "2.34.0", "2.45.0", NEWEST),
    ],
}

# What `make test` has the time for.
SHORT = {"python": ["1.1.0b1", "2.6.0", NEWEST], "javascript": ["1.1.0-beta.1", "2.6.0", NEWEST]}

# In the order they are run in: what is resumed must have been paused.
FEATURES = {
    "create": "create, with metadata and environment",
    "run": "command: output, exit code, user, directory",
    "stream": "output while a command runs",
    "stdin": "standard input of a command",
    "close_stdin": "end of standard input",
    "processes": "background commands: list, connect, kill",
    "deadline": "a command's timeout",
    "pty": "terminal: type, resize, kill",
    "files": "files: text, bytes, list, rename, remove",
    "write_many": "several files in one write",
    "stat": "a file's owner, size and permissions",
    "watch": "watch a directory",
    "watch_deep": "watch it with everything below",
    "host": "a port in the sandbox by its host name",
    "urls": "upload and download URLs",
    "list": "list sandboxes",
    "info": "a sandbox's description",
    "metrics": "what a sandbox uses: CPU, memory",
    "timeout": "set the timeout; it ends a sandbox",
    "auto_pause": "a timeout that pauses",
    "pause": "pause, and pause again",
    "resume": "resume: files, memory, processes are back",
    "connect": "connect to what runs",
    "disk_pause": "a pause that keeps the disk alone",
    "snapshot": "snapshot: make, start from, list, delete",
    "fork": "fork into several",
    "kill": "kill, and kill again",
    "first_program": "the first persistence release's own program",
}


@dataclass(frozen=True, order=True)
class Version:
    """Ordered as both registries order them: a pre-release comes before its release."""

    numbers: tuple[int, ...]
    is_final: bool
    pre: tuple[int, int] = (0, 0)
    text: str = field(default="", compare=False)

    @staticmethod
    def parse(text: str) -> "Version":
        """Takes `2.51.0`, `1.1.0b18`, `1.2.0rc1` and `1.2.0-beta.4`; raises ValueError for anything else."""
        found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(?:-?(a|alpha|b|beta|rc)\.?(\d+))?", text)
        if not found:
            raise ValueError(f"'{text}' is not a version of an SDK")
        numbers = tuple(int(number) for number in found.groups()[:3])
        if found[4] is None:
            return Version(numbers, True, text=text)
        return Version(numbers, False, ("abr".index(found[4][0]), int(found[5])), text)


@dataclass(frozen=True)
class Release:
    language: str
    version: Version
    wanted: str

    @property
    def instead(self) -> str:
        """Which release it stands for, where that one is not published."""
        is_itself = self.wanted in (self.version.text, NEWEST)
        return "" if is_itself else f" (for {self.wanted}, which is not published)"

    @property
    def generation(self) -> str:
        """The scenario's file name, without its ending."""
        numbers, final = self.version.numbers, self.version.is_final
        if numbers >= (2, 15, 0):
            return "v2"
        if numbers >= (2, 0, 0):
            return "v2_beta_pause"
        return "v1" if final else "beta"

    @property
    def ways(self) -> list[str]:
        """How its programs can find sandboxes."""
        numbers = self.version.numbers
        # Python 2.7.0 to 2.25.0 leave the routing headers off what a connected sandbox is asked.
        by_url = numbers >= (2, 25, 1) if self.language == "python" else numbers >= (2, 7, 0)
        return ["name", "URL"] if by_url else ["name"]

    @property
    def flavours(self) -> list[str]:
        return ["sync", "async"] if self.language == "python" else ["async"]


@dataclass(frozen=True, eq=False)
class Lack:
    """What some releases do not have, so that no server can give it to them."""

    features: tuple[str, ...]
    reason: str
    # Releases of the language that are older than this.
    before: dict[str, str] = field(default_factory=dict)
    generations: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()
    flavours: tuple[str, ...] = ()

    def concerns(self, release: Release, way: str, flavour: str) -> bool:
        before = self.before.get(release.language)
        return (
            (before is not None and release.version < Version.parse(before))
            or release.generation in self.generations
            or way in self.ways
            or flavour in self.flavours
        )


LACKS = [
    Lack(("write_many",), "`files.write` takes one file", before={"python": "1.2.0b3", "javascript": "1.2.0-beta.4"}),
    Lack(("watch_deep",), "`watch_dir` has no `recursive`", before={"python": "1.2.0b3", "javascript": "1.2.0-beta.4"}),
    Lack(("stat",), "there is no `files.get_info`", generations=("beta",)),
    Lack(
        ("close_stdin",),
        "a command's standard input cannot be closed",
        before={"python": "2.27.0", "javascript": "2.13.0"},
    ),
    Lack(("info",), "there is no `get_info`", generations=("beta",)),
    Lack(("metrics",), "there is no `get_metrics`", before={"python": "1.2.0b0", "javascript": "1.2.0-beta.0"}),
    Lack(("auto_pause",), "a timeout always kills", generations=("beta", "v1")),
    Lack(("pause", "resume"), "stable releases before 2.0.0 cannot pause", generations=("v1",)),
    Lack(("snapshot",), "there are no snapshots", before={"python": "2.14.0", "javascript": "2.13.0"}),
    Lack(("disk_pause",), "every pause keeps the memory", before={"python": "2.30.0", "javascript": "2.31.0"}),
    Lack(("fork",), "there are no forks", before={"python": "2.34.0", "javascript": "2.35.0"}),
    Lack(
        ("first_program",),
        "there is no `Sandbox.resume(id)`",
        generations=("v1", "v2_beta_pause", "v2"),
    ),
    Lack(("host", "urls"), "a program that goes by URLs knows no host names", ways=("URL",)),
]


def lack(release: Release, way: str, flavour: str, feature: str) -> Lack | None:
    """Why this release cannot do it; None if it can."""
    return next((lack for lack in LACKS if feature in lack.features and lack.concerns(release, way, flavour)), None)


def nearest(wanted: str, published: list[str]) -> Version:
    """The wanted version where it is published, else the next newer one, else the newest there is.

    `published` may hold versions of kinds that are not tried; they are passed over. Raises ValueError if nothing is left.
    """
    known = []
    for text in published:
        try:
            known.append(Version.parse(text))
        except ValueError:
            continue
    finals = [version for version in known if version.is_final]
    if not finals:
        raise ValueError("no release is published")
    if wanted == NEWEST:
        return max(finals)
    goal = Version.parse(wanted)
    candidates = [version for version in (finals if goal.is_final else known) if version >= goal]
    return min(candidates, default=max(finals))

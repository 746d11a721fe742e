"""The leak check: whatever Torpor puts on a host must be gone when it has stopped.

    leaks.py before FILE   remembers what is there
    leaks.py after FILE    lists what is there now and was not before; exits 1 if that is anything

It looks at processes, mounts, loop devices, network links, named network namespaces, nftables tables, control groups
and files. Other programs, another Torpor among them, go on living on the host meanwhile, so these count only if they
can be ours:

- a process, if it carries the run's mark (TORPOR_TEST_RUN) in its environment, runs from the build directory, or is a
  program that we start without the mark: a machine, unless its disk lies in somebody else's data directory;
- a file, if it lies where only Torpor writes, or carries one of the names we use in a shared directory. Tests get a
  TMPDIR of their own, in which every file counts;
- nothing that names an instance (a data directory's eight hexadecimal digits) which had been there before.

Things that vanish with a process that is just ending get a few seconds to do so.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNMARKED_PROGRAMS = re.compile(r"^(qemu-system|mmdebstrap)")
CONTROL_GROUP = re.compile(r":/torpor/[0-9a-f]{8}/")
INSTANCES = "/run/torpor"
# Shared directories, and the names there that can be ours. (Packages installed on the way may make /run/qemu.)
OUR_NAMES = {
    **dict.fromkeys(["/tmp", "/var/tmp", "/dev/shm"], re.compile(r"torpor|qemu|debootstrap|^\.tmp")),
    **dict.fromkeys(["/run", "/run/lock", "/var/lib"], re.compile(r"torpor")),
}
GRACE_SECONDS = 15


def read(path: Path | str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""


def listing(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def ancestors() -> set[int]:
    """This process and those that wait for it, which are expected to be alive."""
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        stat = read(f"/proc/{pid}/stat")
        pid = int(stat.rpartition(")")[2].split()[1]) if stat else 0
    return found


def processes() -> set[str]:
    mark = f"TORPOR_TEST_RUN={os.environ['TORPOR_TEST_RUN']}" if os.environ.get("TORPOR_TEST_RUN") else None
    build = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target")) + "/"
    expected = ancestors()
    found = set()
    for name in listing("/proc"):
        if not name.isdigit() or int(name) in expected:
            continue
        stat = read(f"/proc/{name}/stat")
        if not stat:
            continue
        fields = stat.rpartition(")")[2].split()
        if fields[0] == "Z":  # gone, but for its parent to notice
            continue
        program = stat.partition("(")[2].rpartition(")")[0]
        executable = link(f"/proc/{name}/exe")
        environment = read(f"/proc/{name}/environ").replace("\0", "\n")
        marked = mark is not None and mark in environment.splitlines()
        ours = (build, os.environ.get("TMPDIR", build))
        opened = (link(f"/proc/{name}/fd/{descriptor}") for descriptor in listing(f"/proc/{name}/fd"))
        foreign = CONTROL_GROUP.search(read(f"/proc/{name}/cgroup")) and not any(it.startswith(ours) for it in opened)
        if marked or executable.startswith(build) or (UNMARKED_PROGRAMS.match(program) and not foreign):
            command = " ".join(read(f"/proc/{name}/cmdline").split("\0"))[:120]
            # The start time tells a process from a later one that got the same number.
            found.add(f"pid {name} (started at tick {fields[19]}): {command or program}")
    return found


def mounts() -> set[str]:
    found = set()
    for line in read("/proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, source = rest.split()[:2]
        found.add(f"{kind} {source} on {fields.split()[4]}")
    return found


def loop_devices() -> set[str]:
    return {
        f"/dev/{name} -> {read(f'/sys/block/{name}/loop/backing_file').strip()}"
        for name in listing("/sys/block")
        if os.path.exists(f"/sys/block/{name}/loop/backing_file")
    }


def nft_tables() -> set[str]:
    if not shutil.which("nft"):
        return set()
    answer = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return set(answer.stdout.splitlines())


def control_groups() -> set[str]:
    found = set()
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        found.update(os.path.join(directory, name) for name in names if "torpor" in os.path.join(directory, name))
    return found


def files() -> set[str]:
    found = set()
    for directory, ours in OUR_NAMES.items():
        found.update(f"{directory}/{name}" for name in listing(directory) if ours.search(name))
    for directory, names, plain in os.walk("/run/torpor"):
        found.update(os.path.join(directory, name) for name in names + plain)
    own = os.environ.get("TMPDIR")
    if own and Path(own).name.startswith("torpor-test."):
        found.discard(own)
        found.update(f"{own}/{name}" for name in listing(own))
    return found


KINDS = {
    "process": processes,
    "mount": mounts,
    "loop device": loop_devices,
    "network link": lambda: set(listing("/sys/class/net")),
    "network namespace": lambda: set(listing("/run/netns")),
    "nftables table": nft_tables,
    "control group": control_groups,
    "file": files,
}


def look() -> dict[str, set[str]]:
    return {kind: probe() for kind, probe in KINDS.items()}


def main() -> int:
    what, path = sys.argv[1:]
    if what == "before":
        state = {kind: sorted(found) for kind, found in look().items()}
        Path(path).write_text(json.dumps({"found": state, "instances": listing(INSTANCES)}))
        return 0
    state = json.loads(Path(path).read_text())
    before = {kind: set(found) for kind, found in state["found"].items()}
    elsewhere = [instance for instance in state["instances"] if re.fullmatch("[0-9a-f]{8}", instance)]
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        left = [
            (kind, item)
            for kind, found in look().items()
            for item in sorted(found - before[kind])
            if not any(instance in item for instance in elsewhere)
        ]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.25)
    for kind, item in left:
        print(f"left behind: {kind}: {item}")
    print(f"leak check: {len(left)} left behind" if left else "leak check: nothing was left behind")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

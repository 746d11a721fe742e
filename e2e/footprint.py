"""What one running server holds on its host: to be the same before and after any amount of work.

Everything is counted that can leak: the server's descriptors and threads, the processes of its machines, their network
namespaces, links and control groups, loop devices, and what lies in the data directory and below /run/torpor. Other
servers on the host do not count: machines, links and control groups carry their server's name.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def read(path: Path | str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""


def listing(directory: Path | str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def group(pid: str) -> str:
    """The instance whose machine a process is, by its control group."""
    found = re.search(r":/torpor/([0-9a-f]{8})/", read(f"/proc/{pid}/cgroup"))
    return found[1] if found else ""


def processes() -> list[str]:
    return [name for name in listing("/proc") if name.isdigit()]


def instance(data: Path) -> str:
    """The eight digits that a data directory's control groups, links and files are named by. Needs a machine."""
    for pid in processes():
        name = group(pid)
        disks = (link(f"/proc/{pid}/fd/{descriptor}") for descriptor in listing(f"/proc/{pid}/fd"))
        if name and any(disk.startswith(f"{data}/") for disk in disks):
            return name
    raise RuntimeError(f"no machine of {data} runs: its server keeps none warm?")


def kind_of_descriptor(target: str) -> str:
    """`socket:[123]` is a socket, `/a/b/machines/xyz/disk` a disk."""
    if target.startswith("/"):
        return re.sub(r"[0-9a-f]{8,}|\b[a-z][0-9a-z]{15,}\b", "*", target)
    return target.split("[")[0] if "[" in target else target


def bytes_below(directory: Path) -> int:
    """Space that files take. Those that share extents count each in full, which is fine for a comparison."""
    total = 0
    for path, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                pass  # removed while we look
    return total


def below(directory: Path) -> int:
    return sum(len(names) + len(directories) for _, directories, names in os.walk(directory))


def footprint(data: Path, name: str, server: int) -> dict[str, int]:
    """Counts by what they are of."""
    found: Counter[str] = Counter()
    for descriptor in listing(f"/proc/{server}/fd"):
        target = link(f"/proc/{server}/fd/{descriptor}")
        if target:
            found[f"descriptor: {kind_of_descriptor(target)}"] += 1
    own_network = link(f"/proc/{server}/ns/net")
    running = [pid for pid in processes() if group(pid) == name]
    namespaces = {link(f"/proc/{pid}/ns/net") for pid in running} - {own_network, ""}
    children = [pid for pid in processes() if f"\nPPid:\t{server}\n" in read(f"/proc/{pid}/status")]
    groups = [path for path, _, _ in os.walk("/sys/fs/cgroup") if f"/torpor/{name}/" in path]
    found.update(
        {
            "machine processes": len(running),
            "children of the server": len(children),
            "network namespaces": len(namespaces),
            "network links": sum(other.startswith(f"tp{name}") for other in listing("/sys/class/net")),
            "control groups": len(groups),
            "loop devices": sum(
                read(f"/sys/block/{device}/loop/backing_file").startswith(str(data)) for device in listing("/sys/block")
            ),
            "vault: snapshots": len(listing(data / "vault/snapshots")),
            "vault: machines": len(listing(data / "vault/machines")),
            "vault: staged": len(listing(data / "vault/staging")),
            "vault: KiB": bytes_below(data / "vault") >> 10,
            "files of machines below /run": below(Path("/run/torpor") / name / "machines"),
        }
    )
    return dict(found)


def threads(server: int) -> int:
    return len(listing(f"/proc/{server}/task"))


def resident_kib(server: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", read(f"/proc/{server}/status"))
    return int(found[1]) if found else 0


def difference(before: dict[str, int], after: dict[str, int], tolerance: dict[str, int]) -> list[str]:
    """What is not as it was, one line each. `tolerance` says by how much a count may differ and not be a leak."""
    lines = []
    for what in sorted(before.keys() | after.keys()):
        was, now = before.get(what, 0), after.get(what, 0)
        if abs(now - was) > tolerance.get(what, 0):
            lines.append(f"{what}: {was} before, {now} after")
    return lines


def settled(look: Callable[[], dict[str, int]], good: Callable[[dict[str, int]], bool], seconds: float) -> dict[str, int]:
    """Looks until it is good, or until it has had the time: what ends in the background needs some."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if good(found) or time.monotonic() > deadline:
            return found
        time.sleep(1)

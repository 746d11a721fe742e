#!/usr/bin/env python3
"""What a reader of measurements has to know of the machine they were made on. Prints JSON.

    bench/facts.py --accelerator target/bench-data/accelerator.json --vault target/bench-data/vault --sizes 128 512
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess


def first(pattern: str, text: str, otherwise: str) -> str:
    match = re.search(pattern, text, re.M)
    return match[1].strip() if match else otherwise


def said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", type=pathlib.Path, required=True)
    parser.add_argument("--vault", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--beside-mib", type=int, required=True)
    parser.add_argument("--machine", default="", help="its name; default: by cores, processor and accelerator")
    options = parser.parse_args()
    processor = first(r"^model name\s*:(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), "unknown processor")
    memory_kib = int(first(r"^MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text(), "0"))
    accelerator = json.loads(options.accelerator.read_text())["accelerator"]
    cores, load = os.cpu_count(), "/".join(f"{value:.1f}" for value in os.getloadavg())
    qemu = first(r"version (\S+)", said("qemu-system-x86_64", "--version"), "unknown")
    system = first(r'^PRETTY_NAME="?([^"\n]*)', pathlib.Path("/etc/os-release").read_text(), "Linux")
    emulation = "software emulation (no KVM)" if accelerator == "tcg" else "KVM"
    named = re.sub(r"[^a-z0-9]+", "-", f"{cores}-core-{processor}-{accelerator}".lower()).strip("-")
    about = f"{cores} cores of {processor}, {emulation}"
    file_system = said("findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--target", options.vault).split()
    dirty = " and more" if said("git", "status", "--porcelain", "--untracked-files=no") else ""
    print(json.dumps({
        "machine": options.machine or named,
        "about": about,
        "sizes_mib": options.sizes,
        "beside_mib": options.beside_mib,
        "measured_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "lines": [
            f"{about}, {memory_kib / 2**20:.0f} GiB of memory",
            f"{system}, Linux {os.uname().release}, QEMU {qemu}",
            f"the vault on {file_system[0] if file_system else 'an unknown file system'}"
            f"{' in an image, mounted by loop' if 'loop' in ' '.join(file_system) else ''}",
            f"{datetime.date.today().isoformat()}, load at the start {load}, commit {said('git', 'rev-parse', '--short', 'HEAD')}{dirty}",
        ]}))


if __name__ == "__main__":
    main()

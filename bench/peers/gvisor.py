#!/usr/bin/env python3
"""Pause and resume by gVisor's `runsc checkpoint` and `restore`, for comparison with `torpor bench`.

A container with the host's own files (read-only) runs a Python process that holds random live data and prints a line
every 10 ms. Pause: until `runsc checkpoint` has returned. Resume: from starting `runsc restore` until the process
has printed its next line. Needs root and the Debian package runsc.

    bench/runsc.py [--live-mib 400] [--runs 5] [--json]
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

PROGRAM = """
import hashlib, os, time
data = os.urandom({mib} << 20)
digest = hashlib.sha256(data).hexdigest()
while True:
    print(time.monotonic(), digest, flush=True)
    time.sleep(0.01)
"""


class Container:
    """One container, restored under a new name each time, its output in one growing file."""

    def __init__(self, work: pathlib.Path, live_mib: int):
        self.work, self.generation = work, 0
        self.flags = ["runsc", f"--root={work}/root", "--network=none", "--ignore-cgroups", "--overlay"]
        self.output = (work / "output").open("wb+")
        self.image = work / "image"
        bundle = work / "bundle"
        bundle.mkdir()
        command = ["/usr/bin/python3", "-c", PROGRAM.format(mib=live_mib)]
        subprocess.run(["runsc", "spec", "--", *command], cwd=bundle, check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["root"] = {"path": "/", "readonly": True}
        config["process"].update(terminal=False, env=["PATH=/usr/bin:/bin"])
        (bundle / "config.json").write_text(json.dumps(config))
        self.bundle = bundle

    @property
    def name(self) -> str:
        return f"torpor-bench-{self.generation}"

    def call(self, *arguments: str) -> None:
        subprocess.run([*self.flags, *arguments], check=True, stdout=self.output, stderr=subprocess.DEVNULL)

    def lines(self) -> list[bytes]:
        return (self.work / "output").read_bytes().splitlines()

    def wait_for_line_after(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.lines()) <= count:
            if time.monotonic() > deadline:
                sys.exit("the container printed nothing for 120 s")
            time.sleep(0.001)

    def start(self) -> None:
        self.call("run", f"--bundle={self.bundle}", "--detach", self.name)
        self.wait_for_line_after(0)

    def pause(self) -> float:
        shutil.rmtree(self.image, ignore_errors=True)
        self.image.mkdir()
        started = time.monotonic()
        self.call("checkpoint", f"--image-path={self.image}", self.name)
        took = time.monotonic() - started
        self.call("delete", "--force", self.name)
        return took

    def resume(self) -> float:
        self.generation += 1
        before = len(self.lines())
        started = time.monotonic()
        self.call("restore", f"--bundle={self.bundle}", f"--image-path={self.image}", "--detach", self.name)
        self.wait_for_line_after(before)
        return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live-mib", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not shutil.which("runsc"):
        sys.exit("runsc is missing: apt-get install runsc")
    with tempfile.TemporaryDirectory(prefix="torpor-runsc-") as directory:
        container = Container(pathlib.Path(directory), options.live_mib)
        container.start()
        try:
            times = [(container.pause(), container.resume()) for _ in range(options.runs)]
        finally:
            container.call("delete", "--force", container.name)
        if len({line.split()[-1] for line in container.lines() if line.count(b" ") == 1}) != 1:
            sys.exit("the live data changed across a checkpoint")
    pauses, resumes = ([row[i] * 1000 for row in times] for i in (0, 1))
    result = {"pause_ms": statistics.median(pauses), "resume_ms": statistics.median(resumes), "runs": options.runs}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"runsc, {options.live_mib} MiB live, median of {options.runs}: "
              f"pause {result['pause_ms']:.0f} ms, resume {result['resume_ms']:.0f} ms")


if __name__ == "__main__":
    main()

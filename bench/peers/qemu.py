#!/usr/bin/env python3
"""Pause and resume by plain QEMU migration to a file, for comparison with `torpor bench`.

A guest whose only program holds random live data and prints a line every 10 ms. Pause: `stop` and `migrate file:…`
until completed. Resume: from starting a QEMU process with `-incoming` until the guest has printed its next line.
Needs qemu-system-x86_64, gcc with a static libc, and a kernel image with a serial console.

    bench/qemu_migration.py --kernel /var/cache/torpor/rootfs-*/vmlinuz [--accel tcg] [--live-mib 400] [--runs 5] [--json]
"""

import argparse
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

INIT = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
    mkdir("/dev", 0755); mount("dev", "/dev", "devtmpfs", 0, "");
    int console = open("/dev/ttyS0", O_WRONLY);
    size_t words = (size_t)LIVE_MIB << 17;
    uint64_t *data = malloc(words * 8), x = 88172645463325252ull;
    for (size_t i = 0; i < words; i++) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; data[i] = x; }
    for (unsigned tick = 0;; tick++) { dprintf(console, "tick %u\n", tick); usleep(10000); }
}
"""


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An initramfs in the `newc` format."""
    archive = b""
    for inode, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        entry = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        for part in (entry, data):
            archive += part + b"\0" * (-len(part) % 4)
    return archive


class Guest:
    """A QEMU process and its control socket."""

    def __init__(self, work: pathlib.Path, arguments: list[str]):
        self.console = work / "console"
        control = work / "qmp.sock"
        control.unlink(missing_ok=True)
        self.process = subprocess.Popen([
            *arguments, "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-qmp", f"unix:{control},server=on,wait=off"])
        deadline = time.monotonic() + 20
        self.socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.socket.connect(str(control))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
        self.reader = self.socket.makefile("r")
        self.reader.readline()
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self.reader.readline())
            if "error" in answer:
                sys.exit(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def lines(self) -> int:
        return self.console.read_bytes().count(b"tick ") if self.console.exists() else 0

    def wait_for_line_after(self, count: int) -> None:
        deadline = time.monotonic() + 180
        while self.lines() <= count:
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit(f"the guest printed nothing: {self.console.read_text(errors='replace')[-2000:]}")
            time.sleep(0.001)

    def wait_for_migration(self) -> None:
        while (status := self.call("query-migrate").get("status")) != "completed":
            if status == "failed":
                sys.exit("the migration failed")
            time.sleep(0.001)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--accel", choices=["kvm", "tcg"], default="tcg")
    parser.add_argument("--live-mib", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dir", default=None, help="where the state file goes; default: the temporary directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torpor-qemu-", dir=options.dir) as directory:
        work = pathlib.Path(directory)
        program = work / "init"
        subprocess.run(["gcc", "-O2", "-static", f"-DLIVE_MIB={options.live_mib}", "-x", "c", "-", "-o", program],
                       input=INIT, text=True, check=True)
        initramfs = work / "initramfs"
        initramfs.write_bytes(cpio({"init": (0o100755, program.read_bytes())}))
        cmdline = "console=ttyS0 quiet mitigations=off"
        if options.accel == "tcg":
            megahertz = next(line.split(":")[1] for line in open("/proc/cpuinfo") if line.startswith("cpu MHz"))
            cmdline += f" tsc_early_khz={float(megahertz) * 1000:.0f} tsc=reliable"
        machine = ["qemu-system-x86_64", "-machine", "microvm,rtc=on,acpi=on,isa-serial=on,pic=off,pit=off", "-accel",
                   options.accel, "-cpu", "max" if options.accel == "tcg" else "host", "-m",
                   str(options.live_mib + 624), "-display", "none", "-nodefaults", "-no-user-config"]
        boot = ["-kernel", options.kernel, "-initrd", str(initramfs), "-append", cmdline]
        guest, state, pauses, resumes = Guest(work, [*machine, *boot]), work / "state", [], []
        try:
            guest.wait_for_line_after(0)
            for _ in range(options.runs):
                started = time.monotonic()
                guest.call("stop")
                guest.call("migrate-set-parameters", **{"max-bandwidth": 0})
                guest.call("migrate", uri=f"file:{state}")
                guest.wait_for_migration()
                pauses.append((time.monotonic() - started) * 1000)
                guest.end()
                before = guest.lines()
                started = time.monotonic()
                guest = Guest(work, [*machine, "-incoming", f"file:{state}"])
                guest.wait_for_migration()
                guest.call("cont")
                guest.wait_for_line_after(before)
                resumes.append((time.monotonic() - started) * 1000)
        finally:
            guest.end()
    result = {"pause_ms": statistics.median(pauses), "resume_ms": statistics.median(resumes), "runs": options.runs}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"QEMU migration to a file, {options.live_mib} MiB live, median of {options.runs}: "
              f"pause {result['pause_ms']:.0f} ms, resume {result['resume_ms']:.0f} ms")


if __name__ == "__main__":
    main()

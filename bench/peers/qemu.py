"""Plain QEMU: `stop`, migration to a file, and a new process that takes the migration in."""

import json
import pathlib
import re
import select
import socket
import subprocess
import time

from peer import Failed, Peer, build_workload, last_lines

PROGRAM = "qemu-system-x86_64"
# Guest memory beside the live data: as much as a sandbox of Torpor has.
BESIDE_MIB = 624


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An initramfs in the `newc` format."""
    archive = b""
    for inode, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        entry = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        for part in (entry, data):
            archive += part + b"\0" * (-len(part) % 4)
    return archive


class QemuFile(Peer):
    """The guest's only program is the workload, on a serial console."""

    name = "qemu-file"
    about = "plain QEMU, `migrate file:`"
    capabilities: list[str] = []
    parameters: dict = {"max-bandwidth": 0}

    def __init__(self, work: pathlib.Path, live_mib: int, kernel: str, accelerator: str):
        super().__init__(work, live_mib)
        self.state, self.log = work / "state", work / "log"
        workload = (build_workload(work) / "workload").read_bytes()
        initramfs = work / "initramfs"
        initramfs.write_bytes(cpio({"init": (0o100755, workload)}))
        cmdline = "console=ttyS0 quiet mitigations=off"
        if accelerator == "tcg":
            megahertz = next(line.split(":")[1] for line in open("/proc/cpuinfo") if line.startswith("cpu MHz"))
            cmdline += f" tsc_early_khz={float(megahertz) * 1000:.0f} tsc=reliable"
        self.machine = [
            PROGRAM, "-machine", "microvm,rtc=on,acpi=on,isa-serial=on,pic=off,pit=off", "-accel", accelerator,
            "-cpu", "max" if accelerator == "tcg" else "host", "-m", str(live_mib + BESIDE_MIB), "-display", "none",
            "-nodefaults", "-no-user-config", "-chardev", f"socket,id=console,path={work}/console,server=on,wait=off",
            "-serial", "chardev:console", "-qmp", f"unix:{work}/qmp,server=on,wait=off"]
        self.boot = ["-kernel", kernel, "-initrd", str(initramfs), "-append", f"{cmdline} -- {live_mib} tty /dev/ttyS0"]
        self.process = self.qmp = self.console = None

    def version(self) -> str:
        said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
        return re.search(r"version (\S+)", said)[1]

    def launch(self, arguments: list[str]) -> None:
        for name in ("console", "qmp"):
            (self.work / name).unlink(missing_ok=True)
        self.process = subprocess.Popen([*self.machine, *arguments], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=self.log.open("wb"))
        self.qmp = self.connect("qmp")
        self.reader = self.qmp.makefile("r")
        self.reader.readline()
        self.call("qmp_capabilities")
        self.console = self.connect("console")
        on = [{"capability": capability, "state": True} for capability in self.capabilities]
        if on:
            self.call("migrate-set-capabilities", capabilities=on)
        self.call("migrate-set-parameters", **self.parameters)

    def connect(self, name: str) -> socket.socket:
        deadline = time.monotonic() + 20
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.work / name))
                return connection
            except OSError:
                connection.close()
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise Failed(f"QEMU cannot be reached: {last_lines(self.log)}")
                time.sleep(0.001)

    def call(self, command: str, **arguments):
        self.qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            line = self.reader.readline()
            if not line:
                raise Failed(f"QEMU ended at {command}: {last_lines(self.log)}")
            answer = json.loads(line)
            if "error" in answer:
                raise Failed(f"QEMU refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def wait_for_migration(self) -> None:
        while (state := self.call("query-migrate")).get("status") != "completed":
            if state.get("status") == "failed":
                raise Failed(f"the migration failed: {state.get('error-desc') or last_lines(self.log)}")
            time.sleep(0.001)

    def start(self) -> None:
        self.launch(self.boot)

    def before_save(self) -> None:
        self.state.unlink(missing_ok=True)

    def save(self) -> None:
        self.call("stop")
        self.call("migrate", uri=f"file:{self.state}")
        self.wait_for_migration()

    def after_save(self) -> None:
        self.end()

    def restore(self) -> None:
        self.launch(["-incoming", "defer"])
        self.call("migrate-incoming", uri=f"file:{self.state}")
        self.wait_for_migration()
        self.call("cont")

    def output(self) -> bytes:
        if not select.select([self.console], [], [], 0)[0]:
            return b""
        said = self.console.recv(65536)
        if not said:
            raise Failed(f"QEMU ended: {last_lines(self.log)}")
        return said

    def ask_for_sum(self) -> None:
        self.console.sendall(b"sum\n")

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            for connection in filter(None, (self.qmp, self.console)):
                connection.close()
            self.process = self.qmp = self.console = None


class QemuMappedRam(QemuFile):
    """Every page at its own place in the file, written and read by several threads."""

    name = "qemu-mapped-ram"
    about = "plain QEMU, `migrate file:`, mapped-ram, multifd"
    capabilities = ["mapped-ram", "multifd"]
    parameters = {"max-bandwidth": 0, "multifd-channels": 4}

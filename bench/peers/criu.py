"""CRIU: `criu dump` and `criu restore` of the workload, alone in namespaces of its own."""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import time

from peer import Failed, FileOutput, Peer, build_workload, last_lines, run

# Its network namespace holds nothing but a loopback interface, which need be neither saved nor locked;
# its control group is the host's.
BOTH = ["--empty-ns", "net", "--network-lock", "skip", "--manage-cgroups=ignore"]

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Criu(Peer):
    """A process tree of one, which we inherit from `criu restore`."""

    name = "criu"
    about = "CRIU, `criu dump` / `restore`"

    def __init__(self, work: pathlib.Path, live_mib: int, program: str):
        super().__init__(work, live_mib)
        self.program, self.pid, self.outer = program, 0, None
        self.image, self.log = work / "image", work / "log"
        self.root = build_workload(work)
        self.lines = FileOutput(self.root / "output")
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # A restore needs a root that is a mount.
        self.mounted = False
        subprocess.run(["mount", "--bind", "--make-private", self.root, self.root], check=True)
        self.mounted = True

    def version(self) -> str:
        return subprocess.run([self.program, "--version"], capture_output=True, text=True,
                              check=True).stdout.split()[1]

    def start(self) -> None:
        outer = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount", "--net", "--ipc", "--uts", self.root / "workload",
             str(self.live_mib), "in", self.root],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log.open("wb"))
        children = pathlib.Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        while not (pids := children.read_text().split()):
            if outer.poll() is not None:
                raise Failed(f"the workload did not start: {last_lines(self.log)}")
            time.sleep(0.001)
        self.outer, self.pid = outer, int(pids[0])

    def before_save(self) -> None:
        shutil.rmtree(self.image, ignore_errors=True)
        self.image.mkdir()

    def save(self) -> None:
        self.call("dump", "--tree", self.pid)

    def after_save(self) -> None:
        self.reap()
        self.output()

    def restore(self) -> None:
        pid_file = self.image / "pid"
        pid_file.unlink(missing_ok=True)
        self.call("restore", "--restore-detached", "--root", self.root, "--pidfile", pid_file)
        self.pid = int(pid_file.read_text())

    def reap(self) -> None:
        """Waits for the workload, which was ended by the dump: our child after a restore, at first that of `unshare`."""
        if self.outer:
            self.outer.wait()
            self.outer = None
        else:
            os.waitpid(self.pid, 0)
        self.pid = 0

    def call(self, action: str, *arguments) -> None:
        try:
            run([self.program, action, "--images-dir", self.image, "--log-file", "log", *BOTH, *arguments], self.log)
        except Failed as failed:
            told = [line for line in (self.image / "log").read_text(errors="replace").splitlines() if "Error" in line]
            raise Failed(f"criu {action}: {' | '.join(told[-6:]) or failed}") from failed

    def output(self) -> bytes:
        return self.lines.read()

    def ask_for_sum(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)

    def end(self) -> None:
        # Also those of which nobody told us: a restore may be interrupted.
        while pids := pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            for pid in map(int, pids):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if self.mounted:
            subprocess.run(["umount", self.root], check=True)
            self.mounted = False

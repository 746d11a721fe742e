"""gVisor: `runsc checkpoint` without compression, and `runsc restore`."""

import json
import pathlib
import shutil
import subprocess

from peer import FileOutput, Peer, build_workload, run


class Gvisor(Peer):
    """One container, restored under a new name each time, its output in one growing file."""

    name = "runsc"
    about = "gVisor, `runsc checkpoint --compression=none` / `restore`"

    def __init__(self, work: pathlib.Path, live_mib: int, program: str):
        super().__init__(work, live_mib)
        self.program, self.generation = program, 0
        self.image, self.bundle, self.log = work / "image", work / "bundle", work / "log"
        self.flags = [program, f"--root={work}/state", "--network=none", "--ignore-cgroups", "--overlay2=none"]
        self.stdout = (work / "output").open("ab")
        self.lines = FileOutput(work / "output")
        self.bundle.mkdir()
        run([program, "spec", "--", "/workload", live_mib], self.log, cwd=self.bundle)
        config = json.loads((self.bundle / "config.json").read_text())
        config["root"] = {"path": str(build_workload(work)), "readonly": True}
        config["process"].update(terminal=False)
        (self.bundle / "config.json").write_text(json.dumps(config))

    @property
    def container(self) -> str:
        return f"torpor-bench-{self.generation}"

    def call(self, *arguments) -> None:
        run([*self.flags, *arguments], self.log, stdout=self.stdout)

    def version(self) -> str:
        return subprocess.run([self.program, "--version"], capture_output=True, text=True,
                              check=True).stdout.split()[2]

    def start(self) -> None:
        self.call("run", f"--bundle={self.bundle}", "--detach", self.container)

    def before_save(self) -> None:
        shutil.rmtree(self.image, ignore_errors=True)
        self.image.mkdir()

    def save(self) -> None:
        self.call("checkpoint", "--compression=none", f"--image-path={self.image}", self.container)

    def after_save(self) -> None:
        self.call("delete", "--force", self.container)
        self.generation += 1
        self.output()

    def restore(self) -> None:
        self.call("restore", f"--bundle={self.bundle}", f"--image-path={self.image}", "--detach", self.container)

    def output(self) -> bytes:
        return self.lines.read()

    def ask_for_sum(self) -> None:
        self.call("kill", self.container, "USR1")

    def end(self) -> None:
        self.call("delete", "--force", self.container)

"""What every generation of the Python SDK can do in the same way, one method for each feature.

A generation's own scenario adds how its sandboxes are made, listed, paused, resumed and killed.
"""

import inspect
import os
import urllib.error
import urllib.request
import uuid

from e2b import CommandExitException, NotFoundException, PtySize, TimeoutException

from flavours import settle
from report import wait_for

# Says on a signal what it holds in memory and nowhere else.
KEEPER = "trap 'echo \"$SECRET in $$\" > said' USR1; while :; do sleep 0.1; done"


class Steps:
    def __init__(self, flavour):
        self.flavour = flavour
        self.mark = uuid.uuid4().hex
        self.Sandbox = flavour.Sandbox
        self.sandbox = None
        self.keeper = None
        self.made = []

    async def kept(self, creating):
        """The new sandbox, noted so that `clean` finds it."""
        sandbox = await settle(creating)
        self.made.append(sandbox.sandbox_id)
        return sandbox

    async def clean(self) -> None:
        """Takes away what a failed step left."""
        for sandbox_id in self.made:
            await settle(self.Sandbox.kill(sandbox_id))

    @property
    def open_stdin(self) -> dict:
        """How `commands.run` is asked for an open standard input. Before 2.1 or so it always is."""
        return {"stdin": True} if "stdin" in inspect.signature(self.sandbox.commands.run).parameters else {}

    async def command(self, cmd: str, sandbox=None, **options):
        return await settle((sandbox or self.sandbox).commands.run(cmd, **options))

    # --- inside a sandbox ---

    async def run(self):
        result = await self.command("echo out; echo err >&2")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0), result
        say = 'echo "$COLOUR $SHAPE $PWD $(id -un)"'
        assert (await self.command(say)).stdout == "violet  /home/user user\n"
        changed = await self.command(say, envs={"SHAPE": "round"}, cwd="/usr", user="root")
        assert changed.stdout == "violet round /usr root\n", changed
        try:
            await self.command("echo before; echo reason >&2; exit 7")
        except CommandExitException as failure:
            assert (failure.exit_code, failure.stdout, failure.stderr) == (7, "before\n", "reason\n"), failure
        else:
            raise AssertionError("a failing command raised nothing")

    async def stream(self):
        seen = []

        def on_stdout(output):
            if not seen:
                self.flavour.in_background(self.sandbox.files.write("/tmp/go", ""))
            seen.append(output)

        wait = "while [ ! -e /tmp/go ]; do sleep 0.05; done"
        result = await self.command(f"echo first; {wait}; echo second; echo third >&2", on_stdout=on_stdout)
        assert "".join(seen) == "first\nsecond\n" and len(seen) > 1, seen
        assert (result.stdout, result.stderr) == ("first\nsecond\n", "third\n"), result

    async def stdin(self):
        handle = await self.command('read line; echo "got $line"', background=True, **self.open_stdin)
        await settle(self.sandbox.commands.send_stdin(handle.pid, "hello\n"))
        assert (await settle(handle.wait())).stdout == "got hello\n"

    async def close_stdin(self):
        handle = await self.command("wc -c", background=True, **self.open_stdin)
        await settle(self.sandbox.commands.send_stdin(handle.pid, "12345"))
        await settle(self.sandbox.commands.close_stdin(handle.pid))
        assert (await settle(handle.wait())).stdout.strip() == "5"

    async def processes(self):
        handle = await self.command("sleep 1000", background=True, timeout=0)
        assert handle.pid in {process.pid for process in await settle(self.sandbox.commands.list())}
        attached = await settle(self.sandbox.commands.connect(handle.pid))
        assert await settle(self.sandbox.commands.kill(handle.pid)) is True
        for waiting in (attached, handle):
            try:
                await settle(waiting.wait())
            except CommandExitException:
                continue
            raise AssertionError("a killed command ended well")
        assert await settle(self.sandbox.commands.kill(handle.pid)) is False

    async def deadline(self):
        try:
            await self.command("sleep 1000", timeout=5)
        except TimeoutException:
            return
        raise AssertionError("a command over its timeout went on")

    async def pty(self):
        terminal = await self.flavour.terminal(self.sandbox, PtySize(rows=24, cols=80))

        async def type_line(line: bytes):
            await settle(self.sandbox.pty.send_stdin(terminal.pid, line + b"\n"))

        await type_line(b"test -t 0 && echo result-$((20 + 3))-$TERM")
        await terminal.shows(b"result-23-xterm-256color")
        await settle(self.sandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=132)))
        await type_line(b'echo "size:$(stty size)"')
        await terminal.shows(b"size:40 132")
        assert await settle(self.sandbox.pty.kill(terminal.pid)) is True

    async def files(self):
        files = self.sandbox.files
        text = "Příliš žluťoučký kůň 🐎\n"
        written = await settle(files.write("letter.txt", text))
        assert written.path == "/home/user/letter.txt", written
        assert await settle(files.read("letter.txt")) == text
        data = os.urandom(1_000_000)
        await settle(files.write("/tmp/data.bin", data))
        assert await settle(files.read("/tmp/data.bin", format="bytes")) == data
        assert await settle(files.make_dir("new/inner")) is True
        assert await settle(files.make_dir("new/inner")) is False
        await settle(files.write("new/a", "a"))
        listed = {(entry.name, entry.type.value, entry.path) for entry in await settle(files.list("new"))}
        assert listed == {("a", "file", "/home/user/new/a"), ("inner", "dir", "/home/user/new/inner")}, listed
        assert (await settle(files.rename("new/a", "new/b"))).path == "/home/user/new/b"
        assert await settle(files.exists("new/b")) is True
        assert await settle(files.exists("new/a")) is False
        await settle(files.remove("new"))
        assert await settle(files.exists("new")) is False
        try:
            await settle(files.read("missing.txt"))
        except NotFoundException:
            return
        raise AssertionError("a missing file was read")

    async def write_many(self):
        files = [{"path": "many/a.txt", "data": "a"}, {"path": "many/sub/b.txt", "data": b"b"}]
        write = getattr(self.sandbox.files, "write_files", self.sandbox.files.write)
        written = await settle(write(files))
        assert [entry.path for entry in written] == ["/home/user/many/a.txt", "/home/user/many/sub/b.txt"], written
        assert await settle(self.sandbox.files.read("many/sub/b.txt")) == "b"

    async def stat(self):
        await settle(self.sandbox.files.write("stat.txt", "twelve bytes"))
        info = await settle(self.sandbox.files.get_info("stat.txt"))
        facts = (info.name, info.type.value, info.size, info.mode, info.permissions, info.owner, info.group)
        assert facts == ("stat.txt", "file", 12, 0o644, "-rw-r--r--", "user", "user"), facts

    async def watch(self):
        files = self.sandbox.files
        await settle(files.make_dir("watched"))
        watch = await self.flavour.watch(self.sandbox, "watched")
        await settle(files.write("watched/a.txt", "1"))
        await watch.shows({("a.txt", "create"), ("a.txt", "write")})
        await settle(files.rename("watched/a.txt", "watched/b.txt"))
        await watch.shows({("a.txt", "rename"), ("b.txt", "create")})
        await self.command("chmod 600 watched/b.txt")
        await watch.shows({("b.txt", "chmod")})
        await settle(files.remove("watched/b.txt"))
        await watch.shows({("b.txt", "remove")})
        await watch.stop()

    async def watch_deep(self):
        files = self.sandbox.files
        await settle(files.make_dir("deep/old"))
        watch = await self.flavour.watch(self.sandbox, "deep", recursive=True)
        await settle(files.write("deep/old/x.txt", "1"))
        await watch.shows({("old/x.txt", "write")})
        await settle(files.make_dir("deep/new"))
        await watch.shows({("new", "create")})
        await settle(files.write("deep/new/y.txt", "1"))
        await watch.shows({("new/y.txt", "write")})
        await watch.stop()

    async def host(self):
        await settle(self.sandbox.files.write("site/index.html", self.mark))
        await self.command("python3 -m http.server 8000 -d site", background=True, timeout=0)
        host = await settle(self.sandbox.get_host(8000))

        async def served():
            status, body = fetch(f"https://{host}/")
            return status == 200 and body == self.mark.encode()

        await wait_for(served, f"the site at https://{host}/")

    async def urls(self):
        await settle(self.sandbox.files.write("/home/user/by-url.txt", self.mark))
        status, body = fetch(await settle(self.sandbox.download_url("/home/user/by-url.txt")))
        assert (status, body) == (200, self.mark.encode()), (status, body)
        part = f'--b\r\nContent-Disposition: form-data; name="file"; filename="up.txt"\r\n\r\n{self.mark}\r\n--b--\r\n'
        upload = await settle(self.sandbox.upload_url("/home/user/up.txt"))
        status, body = fetch(upload, part.encode(), {"Content-Type": "multipart/form-data; boundary=b"})
        assert status == 200, (status, body)
        assert await settle(self.sandbox.files.read("/home/user/up.txt")) == self.mark

    # --- the sandbox as a whole ---

    async def metrics(self):
        async def measured():
            return await settle(self.sandbox.get_metrics())

        newest = (await wait_for(measured, "a measurement"))[-1]
        # The pre-releases have it in MiB.
        total = getattr(newest, "mem_total_mib", None) or newest.mem_total >> 20
        assert newest.cpu_count >= 1 and 256 < total <= 512, newest

    async def running(self, sandbox=None) -> bool:
        return await settle((sandbox or self.sandbox).is_running())

    async def remember(self):
        """Puts something into memory, and only there, that a resume must bring back."""
        await settle(self.sandbox.files.write("/home/user/kept.txt", self.mark))
        self.keeper = await self.command(KEEPER, background=True, timeout=0, envs={"SECRET": self.mark})

    async def recall(self, sandbox):
        """Asks for it again, through the sandbox object that the resume gave."""
        assert await settle(sandbox.files.read("/home/user/kept.txt")) == self.mark
        pid = self.keeper.pid
        assert pid in {process.pid for process in await settle(sandbox.commands.list())}
        await self.command(f"rm -f said; kill -USR1 {pid}", sandbox)

        async def said():
            return await settle(sandbox.files.exists("said")) and await settle(sandbox.files.read("said"))

        text = await wait_for(said, "the process to say what it remembers")
        assert text == f"{self.mark} in {pid}\n", text
        attached = await settle(sandbox.commands.connect(pid))
        assert await settle(attached.kill()) is True

    async def expires(self, sandbox):
        """Sets a timeout that passes at once, and waits for the sandbox to be gone."""
        await settle(sandbox.set_timeout(1))

        async def gone():
            return not await self.running(sandbox)

        await wait_for(gone, "the sandbox to be gone")


def fetch(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """One request by a client that is not the SDK; an error status is an answer like any other."""
    request = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read()

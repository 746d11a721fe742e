"""The releases since 2.15.0: `Sandbox.create()`, `pause()`, and `Sandbox.connect(id)` resumes."""

from datetime import UTC, datetime

from e2b import SandboxQuery, SandboxState

from flavours import settle
from report import main, wait_for
from steps import Steps


class V2(Steps):
    async def make(self, **options):
        options.setdefault("timeout", 300)
        facts = {"metadata": {"mark": self.mark}, "envs": {"COLOUR": "violet"}}
        return await self.kept(self.Sandbox.create(**facts, **options))

    async def listed(self, **options) -> dict:
        """Every sandbox of ours that the listing shows, over all its pages."""
        pages = self.Sandbox.list(**options)
        found = {}
        while pages.has_next:
            found.update({sandbox.sandbox_id: sandbox for sandbox in await settle(pages.next_items())})
        return found

    async def create(self):
        self.sandbox = await self.make()
        assert self.sandbox.sandbox_id.isalnum(), self.sandbox.sandbox_id
        assert await self.running() is True

    async def list(self):
        second = await self.make()
        both = {self.sandbox.sandbox_id, second.sandbox_id}
        assert set(await self.listed(query=SandboxQuery(metadata={"mark": self.mark}), limit=1)) == both
        running = await self.listed(query=SandboxQuery(metadata={"mark": self.mark}, state=[SandboxState.RUNNING]))
        assert {sandbox.state for sandbox in running.values()} == {SandboxState.RUNNING}, running
        assert both <= set(await self.listed())
        assert await settle(self.Sandbox.kill(second.sandbox_id)) is True

    async def info(self):
        info = await settle(self.sandbox.get_info())
        assert info.sandbox_id == self.sandbox.sandbox_id, info
        assert info.metadata == {"mark": self.mark}, info
        assert info.state == SandboxState.RUNNING, info

    async def timeout(self):
        await settle(self.sandbox.set_timeout(900))
        end = (await settle(self.sandbox.get_info())).end_at
        assert 600 < (end - datetime.now(UTC)).total_seconds() <= 901, end
        await self.expires(await self.make())

    async def auto_pause(self):
        sandbox = await self.make_auto_pausing()
        await settle(sandbox.set_timeout(1))

        async def paused():
            return (await settle(sandbox.get_info())).state == SandboxState.PAUSED

        await wait_for(paused, "the sandbox to be paused")
        same = await settle(self.Sandbox.connect(sandbox.sandbox_id, timeout=300))
        assert (await self.command("echo awake", same)).stdout == "awake\n"
        assert await settle(same.kill()) is True

    async def make_auto_pausing(self):
        return await self.make(lifecycle={"on_timeout": "pause"})

    async def call_pause(self):
        return await settle(self.sandbox.pause())

    async def pause(self):
        await self.remember()
        # True and False since 2.16 or so; before, nothing either time.
        assert await self.call_pause() in (True, None)
        assert await self.running() is False
        info = await settle(self.sandbox.get_info())
        assert info.state == SandboxState.PAUSED, info
        assert await self.call_pause() in (False, None)

    async def resume(self):
        same = await settle(self.Sandbox.connect(self.sandbox.sandbox_id, timeout=60))
        assert same.sandbox_id == self.sandbox.sandbox_id
        assert await self.running(same) is True
        await self.recall(same)
        # The object that paused it is as good as the new one.
        assert (await self.command("echo same")).stdout == "same\n"
        self.sandbox = same

    async def connect(self):
        same = await settle(self.Sandbox.connect(self.sandbox.sandbox_id, timeout=300))
        assert (await self.command("echo again", same)).stdout == "again\n"
        same = await settle(self.sandbox.connect(timeout=300))
        assert (await self.command("echo again", same)).stdout == "again\n"

    async def disk_pause(self):
        sandbox = await self.make()
        await settle(sandbox.files.write("kept.txt", self.mark))
        boot = await self.boot(sandbox)
        assert await settle(sandbox.pause(keep_memory=False)) is True
        same = await settle(self.Sandbox.connect(sandbox.sandbox_id, timeout=300))
        assert await settle(same.files.read("kept.txt")) == self.mark
        assert await self.boot(same) != boot
        assert await settle(same.kill()) is True

    async def boot(self, sandbox) -> str:
        """What is the same for as long as the machine's memory is."""
        return (await self.command("cat /proc/sys/kernel/random/boot_id", sandbox)).stdout

    async def snapshot(self):
        await settle(self.sandbox.files.write("/dev/shm/in-memory", self.mark))
        snapshot_id = (await settle(self.sandbox.create_snapshot())).snapshot_id
        assert snapshot_id in await self.snapshots()
        copy = await self.kept(self.Sandbox.create(snapshot_id, timeout=300))
        assert copy.sandbox_id != self.sandbox.sandbox_id
        assert await settle(copy.files.read("/dev/shm/in-memory")) == self.mark
        assert await settle(copy.kill()) is True
        assert await settle(self.Sandbox.delete_snapshot(snapshot_id)) is True
        assert await settle(self.Sandbox.delete_snapshot(snapshot_id)) is False
        assert snapshot_id not in await self.snapshots()

    async def snapshots(self) -> set:
        pages = self.sandbox.list_snapshots()
        found = set()
        while pages.has_next:
            found |= {snapshot.snapshot_id for snapshot in await settle(pages.next_items())}
        return found

    async def fork(self):
        await settle(self.sandbox.files.write("/dev/shm/in-memory", self.mark))
        children = await settle(self.sandbox.fork(count=2, timeout=300))
        self.made += [child.sandbox_id for child in children]
        assert len({self.sandbox.sandbox_id, *self.made[-2:]}) == 3, self.made
        for child in children:
            assert await settle(child.files.read("/dev/shm/in-memory")) == self.mark
            assert await settle(child.kill()) is True
        assert (await self.command("echo still here")).stdout == "still here\n"

    async def kill(self):
        paused = await self.make()
        self.sandbox, ours = paused, self.sandbox
        await self.call_pause()
        for sandbox in (ours, paused):
            assert await settle(sandbox.kill()) is True
            assert await self.running(sandbox) is False
            assert await settle(sandbox.kill()) is False


if __name__ == "__main__":
    main(V2)

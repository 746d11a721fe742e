"""The first persistence releases, 1.1.0b1 to 1.2.0b6: `Sandbox()`, `pause()` gives the id, `Sandbox.resume(id)`."""

from flavours import settle
from report import main
from steps import Steps


class Beta(Steps):
    async def make(self):
        make = getattr(self.Sandbox, "create", self.Sandbox)  # only the asynchronous class has `create`
        return await self.kept(make(timeout=300, metadata={"mark": self.mark}, envs={"COLOUR": "violet"}))

    async def create(self):
        self.sandbox = await self.make()
        assert "-" in self.sandbox.sandbox_id, self.sandbox.sandbox_id
        assert await self.running() is True

    async def list(self):
        listed = await settle(self.Sandbox.list())
        if hasattr(listed, "next_items"):  # 1.2.0b3 and later
            listed = await settle(listed.next_items())
        ours = [sandbox for sandbox in listed if sandbox.metadata == {"mark": self.mark}]
        assert [sandbox.sandbox_id for sandbox in ours] == [self.sandbox.sandbox_id], ours

    async def timeout(self):
        await settle(self.sandbox.set_timeout(600))
        await self.expires(await self.make())

    async def pause(self):
        await self.remember()
        assert await settle(self.sandbox.pause()) == self.sandbox.sandbox_id
        assert await self.running() is False
        # A second pause is 409, which these releases take for done.
        assert await settle(self.sandbox.pause()) == self.sandbox.sandbox_id

    async def resume(self):
        same = await settle(self.Sandbox.resume(self.sandbox.sandbox_id, timeout=60))
        assert same.sandbox_id == self.sandbox.sandbox_id
        assert await self.running(same) is True
        await self.recall(same)
        self.sandbox = same

    async def connect(self):
        same = await settle(self.Sandbox.connect(self.sandbox.sandbox_id))
        assert (await self.command("echo again", same)).stdout == "again\n"
        # A resume of what runs is 409, which these releases take for done.
        same = await settle(self.Sandbox.resume(self.sandbox.sandbox_id, timeout=300))
        assert (await self.command("echo again", same)).stdout == "again\n"

    async def kill(self):
        # Some of these releases' objects forget to say what became of it; their class never does.
        await settle(self.sandbox.kill())
        assert await self.running() is False
        assert await settle(self.Sandbox.kill(self.sandbox.sandbox_id)) is False


if __name__ == "__main__":
    main(Beta)

"""The stable releases 1.0.0 to 1.11.1: `Sandbox()`, and no pause."""

from datetime import UTC, datetime

from e2b.sandbox.sandbox_api import SandboxQuery

from flavours import settle
from report import main
from steps import Steps


class V1(Steps):
    async def make(self):
        make = getattr(self.Sandbox, "create", self.Sandbox)  # only the asynchronous class has `create`
        return await self.kept(make(timeout=300, metadata={"mark": self.mark}, envs={"COLOUR": "violet"}))

    async def create(self):
        self.sandbox = await self.make()
        assert await self.running() is True

    async def list(self):
        listed = await settle(self.Sandbox.list(query=SandboxQuery(metadata={"mark": self.mark})))
        ours = [self.plain(sandbox.sandbox_id) for sandbox in listed]
        assert ours == [self.plain(self.sandbox.sandbox_id)], listed
        everything = await settle(self.Sandbox.list())
        assert ours[0] in {self.plain(sandbox.sandbox_id) for sandbox in everything}

    @staticmethod
    def plain(sandbox_id: str) -> str:
        """The id without the client's part, which these releases give in some places and not in others."""
        return sandbox_id.split("-")[0]

    async def info(self):
        info = await settle(self.sandbox.get_info())
        assert self.plain(info.sandbox_id) == self.plain(self.sandbox.sandbox_id), info
        assert info.metadata == {"mark": self.mark}, info

    async def timeout(self):
        await settle(self.sandbox.set_timeout(900))
        end = (await settle(self.sandbox.get_info())).end_at
        assert 600 < (end - datetime.now(UTC)).total_seconds() <= 901, end
        await self.expires(await self.make())

    async def connect(self):
        same = await settle(self.Sandbox.connect(self.sandbox.sandbox_id))
        assert (await self.command("echo again", same)).stdout == "again\n"

    async def kill(self):
        assert await settle(self.sandbox.kill()) is True
        assert await self.running() is False
        assert await settle(self.sandbox.kill()) is False


if __name__ == "__main__":
    main(V1)

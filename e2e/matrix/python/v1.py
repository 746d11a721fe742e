"""The stable releases 1.0.0 to 1.11.1: `Sandbox()`, and no pause."""

from datetime import UTC, datetime

from e2b.sandbox.sandbox_api import SandboxQuery

from flavours import settle
from report import main
from steps import Steps


class V1(Steps):
    async def make(self, **options):
        make = getattr(self.Sandbox, "create", self.Sandbox)  # only the asynchronous class has `create`
        facts = {"metadata": {"mark": self.mark}, "envs": {"COLOUR": "violet"}}
        return await self.kept(make(timeout=300, **facts, **options))

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

    async def urls(self):
        """URLs are signed in a secure sandbox, which has to be asked for; asynchronous sandboxes have no others."""
        everyday, self.sandbox = self.sandbox, await self.make(secure=True)
        try:
            await super().urls()
        finally:
            await settle(self.sandbox.kill())
            self.sandbox = everyday

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
        # These releases' objects forget to say what became of it; their class does not.
        await settle(self.sandbox.kill())
        assert await self.running() is False
        assert await settle(self.Sandbox.kill(self.sandbox.sandbox_id)) is False


if __name__ == "__main__":
    main(V1)

"""The releases 2.0.0 to 2.14.1: `Sandbox.create()`, `beta_pause()`, `beta_create(auto_pause=True)`; connect resumes."""

from flavours import settle
from report import main
from v2 import V2


class V2BetaPause(V2):
    async def call_pause(self):
        return await settle(self.sandbox.beta_pause())

    async def make_auto_pausing(self):
        return await self.kept(self.Sandbox.beta_create(auto_pause=True, timeout=300))


if __name__ == "__main__":
    main(V2BetaPause)

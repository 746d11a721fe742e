"""Runs the steps a scenario has been asked for, and prints one line of JSON for each.

    python SCENARIO.py sync|async FEATURE...

A line is `{"feature": ..., "ok": true|false, "why": ...}`. The steps of a scenario build on each other (what is resumed
must have been paused), so they run in the order they are named in, and a failed one does not stop the rest: each
says for itself what it misses.
"""

import asyncio
import json
import sys
import time
import traceback
from pathlib import Path

# Software emulation is about ten times slower than hardware; a deadline only has to end a hopeless wait.
DEADLINE_SECONDS = 60.0


async def wait_for(probe, what: str):
    """Asks until the answer is true, and returns it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        answer = await probe()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:.0f} s for {what}; last answer: {answer!r}"
        await asyncio.sleep(0.1)


def why(error: BaseException) -> str:
    """What went wrong, and the line of the scenario where it did."""
    here = Path(__file__).parent
    ours = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == here and f.name != "run"]
    place = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {error}"[:600] + place


async def run(scenario, features: list[str]) -> None:
    for feature in features:
        try:
            await getattr(scenario, feature)()
            line = {"feature": feature, "ok": True, "why": ""}
        except Exception as error:
            line = {"feature": feature, "ok": False, "why": why(error)}
        print(json.dumps(line), flush=True)
    await scenario.clean()


def main(scenario_class) -> None:
    from flavours import FLAVOURS

    flavour, *features = sys.argv[1:]
    asyncio.run(run(scenario_class(FLAVOURS[flavour]()), features))

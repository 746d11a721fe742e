"""`make sdk-matrix`: every release of the SDKs, unmodified, against a server of its own.

    run.py                                      all releases; writes docs/sdk-matrix.md
    run.py --short                              the oldest, a middle and the newest: what `make test` runs
    run.py python==2.3.4 javascript==2.9.0      these (the nearest that is published)
    run.py --features create,pty,kill ...       these features only, where the release has them

Installs what is missing into target/sdk-matrix, which is kept for the next run. Exits 1 if anything that a release can
do did not work. The last line adds up: `sdk-matrix: N passed, N failed`.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from install import Installed, chosen, install  # noqa: E402
from page import Outcome, page  # noqa: E402
from releases import FEATURES, SHORT, WANTED, lack  # noqa: E402
from server import LOGS, ROOT, TARGET, torpor  # noqa: E402
from site_under_test import Site, site  # noqa: E402

DIRECTORY = TARGET / "sdk-matrix"
PAGE = ROOT / "docs" / "sdk-matrix.md"
# Scenarios at work, each the leader of its own process group.
running: set[subprocess.Popen] = set()
# Ends a run that hangs; one takes about ten seconds on a machine that has nothing else to do.
RUN_SECONDS = 600


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument(
        "--at-once", type=int, default=3, help="runs that share the server; they wait more than they work"
    )
    parser.add_argument("--features", type=lambda text: text.split(","), default=list(FEATURES))
    parser.add_argument("releases", nargs="*")
    arguments = parser.parse_args()
    wanted = SHORT if arguments.short else named(arguments.releases) or WANTED

    print("releases:", flush=True)
    installed = []
    for release in chosen(wanted, DIRECTORY):
        print(f"  {release.language} {release.version.text}{release.instead}", flush=True)
        installed.append(install(release, DIRECTORY))

    with site(DIRECTORY) as under_test, ThreadPoolExecutor(arguments.at_once) as pool:
        runs = [pool.submit(run, under_test, arguments.features, *variant) for variant in variants(installed)]
        try:
            outcomes = [told(done.result()) for done in runs]
        finally:
            # Nothing is left running by an interrupted run, and nothing at all by a whole one.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if not arguments.short and not arguments.releases and len(arguments.features) == len(FEATURES):
        PAGE.write_text(page(outcomes, what_ran()))
        print(f"wrote {PAGE.relative_to(ROOT)}")
    failed = sum(len(outcome.failed) for outcome in outcomes)
    print(f"sdk-matrix: {sum(len(outcome.why) for outcome in outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


def named(releases: list[str]) -> dict[str, list[str]]:
    """`python==2.3.4` and the like, by language."""
    found: dict[str, list[str]] = {}
    for release in releases:
        language, _, version = release.partition("==")
        if language not in WANTED or not version:
            raise SystemExit(f"'{release}' is not a release: say python==VERSION or javascript==VERSION")
        found.setdefault(language, []).append(version)
    return found


def variants(installed: list[Installed]) -> Iterator[tuple[Installed, str, str]]:
    """Every way to run every release."""
    for one in installed:
        for way in one.release.ways:
            for flavour in one.release.flavours:
                yield one, way, flavour


def run(under_test: Site, features: list[str], one: Installed, way: str, flavour: str) -> Outcome:
    """Runs a release's scenario for those of the features that it has. What it did not report did not work."""
    outcome = Outcome(one.release, way, flavour)
    started = time.monotonic()
    expected = [feature for feature in features if lack(one.release, way, flavour, feature) is None]
    steps = [feature for feature in expected if feature != "first_program"]
    outcome.why, ending = report(under_test, way, one.command(flavour, steps))
    for feature in steps:
        outcome.why.setdefault(feature, f"the scenario did not get there; {ending}")
    # The program is the synchronous class's; it has no other half.
    if "first_program" in expected and (flavour == "sync" or one.release.language == "javascript"):
        code, output = execute(under_test, way, one.first_program())
        outcome.why["first_program"] = "" if code == 0 else f"exit {code}: {last_line(output)}"
    outcome.seconds = time.monotonic() - started
    return outcome


def report(under_test: Site, way: str, command: list[str]) -> tuple[dict[str, str], str]:
    """What a scenario said of its features, and how it ended."""
    code, output = execute(under_test, way, command)
    found = {}
    for line in output.splitlines():
        if line.startswith('{"feature"'):
            said = json.loads(line)
            found[said["feature"]] = "" if said["ok"] else said["why"] or "it did not say why"
    return found, f"exit {code}: {last_line(output)}"


def execute(under_test: Site, way: str, command: list[str]) -> tuple[int, str]:
    """Runs a command the given way; its exit code and all its output."""
    ours = ("E2B_", "SSL_CERT_", "NODE_EXTRA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    process = subprocess.Popen(
        under_test.command(way, command),
        env={**kept, **under_test.environment(way)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    running.add(process)
    try:
        output, _ = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nended after {RUN_SECONDS} s"
    finally:
        running.discard(process)
    with (LOGS / "sdk-matrix.log").open("a") as log:
        log.write(f"$ {' '.join(command)}\n{output}\n")
    return process.returncode, output


def last_line(output: str) -> str:
    """The last line that is not a feature's."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith('{"feature"')]
    return lines[-1] if lines else "no output"


def told(outcome: Outcome) -> Outcome:
    passed = len(outcome.why) - len(outcome.failed)
    print(f"  {outcome.name}: {passed} of {len(outcome.why)} in {outcome.seconds:.0f} s", flush=True)
    for feature, why in outcome.failed.items():
        print(f"      {feature}: {why}", flush=True)
    return outcome


def what_ran() -> str:
    version = torpor("--version").stdout.strip()
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"Run with {version}, Python {platform.python_version()} and Node.js {node.removeprefix('v')}."


if __name__ == "__main__":
    LOGS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())

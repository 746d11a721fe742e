"""Schemathesis over /openapi.json of a real server, with a valid key: nothing it makes up may be answered 5xx, or in a
way that contradicts the document.

    python e2e/openapi/run.py [--requests N]       until at least N requests were answered; default 10000

The key is of a team of its own that may have two sandboxes running, so that creates do not pile up. What
is taken from the environment is said in e2e/server.py.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from server import Server, data_dir, torpor  # noqa: E402

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Cases for an operation in one round, at most.
ROUND = 100


def team_key(data: Path) -> str:
    name = f"openapi-{uuid.uuid4().hex[:8]}"
    for command in (["team", "create", name, "--max-running", "2"], ["key", "create", "--team", name]):
        done = torpor(*command, "--json", "--data-dir", str(data))
        assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["key"]


def call(url: str, key: str, method: str, path: str):
    request = urllib.request.Request(url + path, headers={"X-API-Key": key}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        body = answer.read()
        return json.loads(body) if body else None


def one_round(url: str, key: str, examples: int, seed: int) -> tuple[int, collections.Counter]:
    """Runs Schemathesis once; its exit code, and how often what was answered."""
    with tempfile.TemporaryDirectory() as scratch:
        counts = Path(scratch, "counts.json")
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
        command += ["--header", f"X-API-Key: {key}", "--checks", CHECKS, "--phases", "examples,coverage,fuzzing"]
        command += ["--max-examples", str(examples), "--seed", str(seed), "--request-timeout", "120"]
        command += ["--suppress-health-check", "all", "--warnings", "off"]
        # One worker: CPython 3.11 loses count when two threads parse at once (gh-106905), and Hypothesis parses lambdas.
        command += ["--workers", "1"]
        environment = {"E2B_API_URL": url, "E2B_API_KEY": key, "OPENAPI_COUNTS": str(counts)}
        environment |= {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
        ended = subprocess.run(command, cwd=scratch, env={**os.environ, **environment}, check=False)
        answered = json.loads(counts.read_text()) if counts.exists() else {}
        return ended.returncode, collections.Counter(answered)


def clean_up(url: str, key: str) -> None:
    for sandbox in call(url, key, "GET", "/v2/sandboxes"):
        call(url, key, "DELETE", f"/sandboxes/{sandbox['sandboxID']}")
    for snapshot in call(url, key, "GET", "/snapshots"):
        call(url, key, "DELETE", "/templates/" + urllib.request.quote(snapshot["snapshotID"], safe=""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    wanted = parser.parse_args().requests
    data = data_dir()
    key = team_key(data)
    server = Server(data)
    server.api_key = key
    server.start()
    answers: collections.Counter = collections.Counter()
    code, rounds = 0, 0
    try:
        while code == 0 and answers.total() < wanted:
            examples = min(ROUND, max(1, (wanted - answers.total()) // 30))
            code, more = one_round(server.url, key, examples, rounds)
            assert code or more, "a round without an answer proves nothing"
            answers, rounds = answers + more, rounds + 1
        clean_up(server.url, key)
    finally:
        server.stop()
    for what, times in sorted(answers.items()):
        print(f"{times:7d}  {what}")
    print(f"{answers.total()} requests in {rounds} rounds: " + ("as documented" if code == 0 else "see above"))
    return code


if __name__ == "__main__":
    sys.exit(main())

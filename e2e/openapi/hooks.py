"""Loaded by Schemathesis: sends half of what it makes up to sandboxes that exist, and counts what was answered.

Ids that are made up name nothing, so that without this nearly everything would be answered 404.
"""

import atexit
import collections
import json
import os
import random
import threading
import urllib.error
import urllib.request

import schemathesis

URL = os.environ["E2B_API_URL"]
KEY = os.environ["E2B_API_KEY"]
COUNTS = os.environ["OPENAPI_COUNTS"]

# How often the sandboxes there are is asked for anew: requests kill some of them.
REFRESH_EVERY = 20

answers: collections.Counter = collections.Counter()
lock = threading.Lock()
# Its own, because Hypothesis sets the shared one to the same state again and again.
chance = random.Random()
sandboxes: list[str] = []
asked = 0


def ask(method: str, path: str, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"X-API-Key": KEY}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError:
        return None


def some_sandbox() -> str | None:
    """One that existed a moment ago; made if there is none."""
    global asked
    with lock:
        asked += 1
        if asked % REFRESH_EVERY == 1:
            sandboxes[:] = [sandbox["sandboxID"] for sandbox in ask("GET", "/v2/sandboxes") or []]
            if not sandboxes:
                made = ask("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 600, "autoPause": True})
                sandboxes.extend([made["sandboxID"]] if made else [])
        return chance.choice(sandboxes) if sandboxes else None


@schemathesis.hook
def before_call(context, case, kwargs):
    path = case.operation.path
    if "/sandboxes/{id}" in path and chance.random() < 0.5 and (known := some_sandbox()):
        case.path_parameters["id"] = known
    if path.endswith("/sandboxes") and isinstance(case.body, dict) and chance.random() < 0.3:
        case.body["templateID"] = "base"


@schemathesis.hook
def after_call(context, case, response):
    with lock:
        answers[f"{case.operation.method.upper()} {case.operation.path} {response.status_code}"] += 1


@atexit.register
def tell():
    with open(COUNTS, "w") as file:
        json.dump(answers, file)

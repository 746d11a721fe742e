"""Prints the create/pause/resume table from the closing JSON lines of the demo programs' outputs."""

import json
import sys

ROWS = [
    ("create", "create"),
    ("pause", "pause"),
    ("resume", "connect (resume)"),
    ("first answer", "first answer from port 8000"),
]


def main() -> None:
    results = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as output:
            results.append(json.loads(output.read().splitlines()[-1]))
    names = [f"{result['program']} (e2b {result['sdk']})" for result in results]
    print("  " + "milliseconds".ljust(16) + "".join(name.rjust(26) for name in names))
    for label, key in ROWS:
        print("  " + label.ljust(16) + "".join(f"{result['milliseconds'][key]:26.1f}" for result in results))


if __name__ == "__main__":
    main()

"""Counts what test runners said.

    tally.py LOG EXIT_CODE     prints `PASSED FAILED` for the runner whose output is in LOG

Reads the closing lines of cargo test, pytest, node --test and e2e/matrix/run.py. A runner that failed without naming a
failed test (it did not compile, it was killed) counts as one failure, and so does one that ended well but ran no test
at all: a success is never reported that no runner reported.
"""

import re
import sys
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
CARGO = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;", re.MULTILINE)
PYTEST = re.compile(r"^=+ (.*\b(?:passed|failed|errors?|skipped|no tests ran)\b.*) in [\d.]+s.* =+$", re.MULTILINE)
MATRIX = re.compile(r"^sdk-matrix: (\d+) passed, (\d+) failed$", re.MULTILINE)
NODE = re.compile(r"^(?:#|ℹ) (pass|fail|cancelled) (\d+)$", re.MULTILINE)


def count(text: str) -> tuple[int, int]:
    text = ANSI.sub("", text)
    passed = failed = 0
    for good, bad in CARGO.findall(text) + MATRIX.findall(text):
        passed, failed = passed + int(good), failed + int(bad)
    for summary in PYTEST.findall(text):
        for number, kind in re.findall(r"(\d+) (passed|failed|errors?)\b", summary):
            if kind == "passed":
                passed += int(number)
            else:
                failed += int(number)
    for kind, number in NODE.findall(text):
        if kind == "pass":
            passed += int(number)
        else:
            failed += int(number)
    return passed, failed


def main() -> None:
    log, code = sys.argv[1:]
    passed, failed = count(Path(log).read_text(encoding="utf-8", errors="replace"))
    if failed == 0 and (int(code) != 0 or passed == 0):
        failed = 1
    print(passed, failed)


if __name__ == "__main__":
    main()

"""The report of `make bench`: judged by figures made up here."""

import json
import re
import subprocess
import sys
import tempfile
import xml.dom.minidom
from pathlib import Path

import pytest
from chart import LABEL_HEIGHT, spread
from verdicts import ANSWER, PAUSE, REWRITTEN, RESUME, Figures, verdicts

HERE = Path(__file__).resolve().parent


def holds(figures: Figures, beginning: str) -> str:
    return next(verdict.holds for verdict in verdicts(figures, [128, 1024, 4096]) if verdict.wanted.startswith(beginning))


def test_an_aim_for_every_size_fails_with_the_worst_of_them():
    figures = Figures({PAUSE: {128: 5.0, 4096: 15.1}}, {}, {}, {})
    assert holds(figures, "pause: ≤ 15 ms") == "**no**"
    figures.torpor[PAUSE][4096] = 6.5
    assert holds(figures, "pause: ≤ 15 ms") == holds(figures, "pause: at 4 GiB") == "yes"


def test_what_was_not_measured_neither_holds_nor_fails():
    assert {verdict.holds for verdict in verdicts(Figures({}, {}, {}, {}), [])} == {"–"}


def test_torpor_is_compared_with_the_peer_that_was_quickest_in_that_operation():
    figures = Figures({REWRITTEN: {1024: 10.0}, ANSWER: {1024: 50.0}, RESUME: {1024: 10.0}},
                      {"runsc": {1024: 1500.0}, "criu": {1024: 110.0}},
                      {"runsc": {1024: 500.0}, "criu": {1024: 900.0}}, {})
    assert holds(figures, "pause at 1 GiB, all live data changed: ≥ 150 times as quick as runsc") == "yes"
    assert holds(figures, "pause at 1 GiB, all live data changed: ≥ 12 times as quick as the best peer (criu)") == "**no**"
    assert holds(figures, "resume at 1 GiB, until the agent's first answer: ≥ 10 times as quick as the best peer (runsc)") == "yes"
    assert holds(figures, "resume at 1 GiB, until answered: ≥ 40 times") == "yes"


@pytest.mark.parametrize("wanted", [[10, 10, 10], [5, 300, 301], [339, 340, 341], [1, 2, 400]])
def test_labels_never_cover_each_other(wanted):
    places = spread(wanted, 4, 344)
    assert all(later - earlier >= LABEL_HEIGHT for earlier, later in zip(places, places[1:]))
    assert places[-1] <= 344


@pytest.fixture
def directory():
    """Empty, and taken away afterwards: pytest's own stay."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def test_a_report_says_which_peer_failed_and_why_and_its_chart_is_well_formed(directory):
    parts, results = directory / "parts", directory / "results"
    parts.mkdir()
    summary = {"count": 2, "min": 4, "median": 5, "p99": 6, "max": 6}
    facts = {"machine": "here", "about": "2 cores & more", "lines": ["fast"], "sizes_mib": [128], "beside_mib": 624}
    content = {
        "facts": facts, "torpor-128": [{"what": PAUSE, "waited_ms": summary}],
        "criu-128": {"peer": "criu", "about": "CRIU", "failed": "no such kernel"},
        "runsc-128": {"peer": "runsc", "about": "gVisor", "version": "7", "runs": 3, "pause_ms": [9, 7, 8], "resume_ms": [1, 2, 3]}}
    for name, value in content.items():
        (parts / f"{name}.json").write_text(json.dumps(value))
    subprocess.run([sys.executable, HERE / "report.py", "--parts", parts, "--results", results], check=True)
    text = (results / "here.md").read_text()
    assert "CRIU, 128 MiB: no such kernel" in text
    assert re.search(r"\| gVisor, 7, 3 rounds \| 8\.0 \|", text)
    xml.dom.minidom.parseString((results / "here.svg").read_text())
    assert json.loads((results / "here.json").read_text())["torpor"]["128"][PAUSE]["median"] == 5

#!/usr/bin/env python3
"""What `make bench` measured, as one report: Markdown (also printed), JSON, and a chart.

Reads a directory of parts: facts.json, density.json, and for every size in MiB torpor-SIZE.json (from `torpor bench latency
--json`), dd-SIZE.json, and one file for each peer.

    bench/report.py --parts target/bench-parts --results bench/results
"""

import argparse
import json
import pathlib
import statistics
from dataclasses import dataclass

from chart import Line, Panel, size_text, svg
from verdicts import Figures, verdicts

PEERS = {
    "qemu-mapped-ram": "QEMU mapped-ram",
    "qemu-file": "QEMU migration",
    "criu": "CRIU",
    "runsc": "gVisor runsc",
}
NOTES = """\
Medians, in milliseconds. Torpor is measured by `torpor bench latency`: what a caller waits over HTTP. For every size the
template `base` was built anew, so that machines really have more memory: live data and {beside} MiB. Torpor's live data is a Python
process's, compared by SHA-256 at the end; the peers' is that of one small C program, compared by a checksum of its own.
A peer's pause ends when its own command says so and its resume when the workload prints its next line (one every 10 ms),
the start of its processes included. Peers flush nothing to the disk within the time that is measured; their images
are on the host's file system and stay in the page cache. A peer writes all memory at every pause: beside that belongs
Torpor's pause with all live data changed, and beside a peer's resume Torpor's until the agent's first answer."""


@dataclass
class Parts:
    """What was measured, by size and contender."""

    facts: dict
    density: dict | None
    torpor: dict[int, dict[str, dict]]
    others: dict[str, dict[int, dict]]


def read(directory: pathlib.Path) -> Parts:
    def content(name: str):
        path = directory / name
        return json.loads(path.read_text()) if path.exists() and path.stat().st_size else None

    facts = content("facts.json")
    torpor = {}
    others: dict[str, dict[int, dict]] = {name: {} for name in ["dd", *PEERS]}
    for mib in facts["sizes_mib"]:
        if series := content(f"torpor-{mib}.json"):
            torpor[mib] = {entry["what"]: entry["waited_ms"] for entry in series}
        for name, by_size in others.items():
            if result := content(f"{name}-{mib}.json"):
                by_size[mib] = result
    return Parts(facts, content("density.json"), torpor, others)


def medians(parts: Parts) -> Figures:
    torpor: dict[str, dict[int, float]] = {}
    for mib, series in parts.torpor.items():
        for what, summary in series.items():
            torpor.setdefault(what, {})[mib] = summary["median"]

    def of(name: str, field: str) -> dict[int, float]:
        return {mib: statistics.median(result[field])
                for mib, result in parts.others[name].items() if result.get(field)}

    return Figures(torpor, {name: of(name, "pause_ms") for name in PEERS},
                   {name: of(name, "resume_ms") for name in PEERS}, of("dd", "write_ms"))


def number(ms: float | None) -> str:
    return "–" if ms is None else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def torpor_table(parts: Parts) -> str:
    sizes = sorted(parts.torpor)
    whats = list(dict.fromkeys(what for mib in sizes for what in parts.torpor[mib]))
    rows = []
    for what in whats:
        summaries = [parts.torpor[mib].get(what) for mib in sizes]
        count = next(summary["count"] for summary in summaries if summary)
        rows.append([f"{what}, {count} rounds", *(
            f"{number(s['median'])} ({number(s['max'])})" if s else "–" for s in summaries)])
    return table(["Torpor, median (slowest)", *map(size_text, sizes)], rows)


def contenders(parts: Parts, figures: Figures, what: str) -> str:
    sizes = parts.facts["sizes_mib"]
    if what == "pause":
        own, field = ["pause", "pause, all live data changed"], figures.pause
    else:
        own, field = ["resume", "resume until the agent's first answer"], figures.resume
    rows = [[f"**Torpor**, {name}", *(number(figures.torpor.get(name, {}).get(mib)) for mib in sizes)] for name in own]
    for name in PEERS:
        results = parts.others[name]
        if results:
            about = next(iter(results.values()))["about"]
            version = next((result["version"] for result in results.values() if "version" in result), None)
            runs = sorted({result["runs"] for result in results.values() if "runs" in result})
            parts_of_label = [about, *([version] if version else []),
                              *([f"{'/'.join(map(str, runs))} rounds"] if runs else [])]
            rows.append([", ".join(parts_of_label), *("failed" if "failed" in results.get(mib, {}) else number(field[name].get(mib))
                                  for mib in sizes)])
    return table([what, *map(size_text, sizes)], rows)


def durable_table(parts: Parts, figures: Figures) -> str:
    sizes = parts.facts["sizes_mib"]
    durable = figures.torpor.get("pause until durable, all live data changed", {})
    both = [mib for mib in sizes if mib in durable and mib in figures.dd]
    return table(["all live data, durable", *map(size_text, sizes)], [
        ["**Torpor**, pause until durable", *(number(durable.get(mib)) for mib in sizes)],
        ["`dd conv=fsync` of as many bytes onto the vault's file system", *(number(figures.dd.get(mib)) for mib in sizes)],
        ["times as long", *(f"{durable[mib] / figures.dd[mib]:.2f}" if mib in both else "–" for mib in sizes)]])


def chart(parts: Parts, figures: Figures) -> str:
    own = figures.torpor

    def peers(field: dict[str, dict[int, float]]) -> list[Line]:
        return [Line(name, PEERS[name], field[name]) for name in PEERS]

    return svg(
        "Pause and resume over random live data", f"{parts.facts['machine']}: {parts.facts['about']}; medians", [
            Panel("pause", [Line("torpor", "Torpor, answered", own.get("pause, all live data changed", {})),
                            Line("torpor-2", "Torpor, durable",
                                 own.get("pause until durable, all live data changed", {})),
                            Line("dd", "dd conv=fsync", figures.dd), *peers(figures.pause)]),
            Panel("resume", [Line("torpor", "Torpor, answered", own.get("resume", {})),
                             Line("torpor-2", "Torpor, guest answers",
                                  own.get("resume until the agent's first answer", {})), *peers(figures.resume)])])


def markdown(parts: Parts, figures: Figures, picture: str) -> str:
    facts = parts.facts
    judged = verdicts(figures, facts["sizes_mib"])
    failures = [f"- {PEERS.get(name, name)}, {size_text(mib)}: {result['failed']}"
                for name, by_size in parts.others.items() for mib, result in by_size.items() if "failed" in result]
    sections = [
        f"# Torpor and its peers on {facts['machine']}",
        "\n".join(f"- {line}" for line in facts["lines"]),
        f"![Pause and resume over live data]({picture})",
        "## What is wanted, and whether it holds",
        table(["wanted", "measured", "holds"], [[v.wanted, v.measured, v.holds] for v in judged]),
        "## Pause", contenders(parts, figures, "pause"),
        "## Resume", contenders(parts, figures, "resume"),
        "## Durable", durable_table(parts, figures),
        "## Torpor", torpor_table(parts)]
    if density := parts.density:
        pss = density["machine_pss_mib"]
        sections.append(f"{density['sandboxes']} sandboxes of 512 MiB at once, each answering a command: {pss['median']:.0f} MiB "
                        f"each (proportional set size of the machine's process), {density['host_mib_per_sandbox']:.0f} MiB "
                        "of the host's memory each.")
    if failures:
        sections += ["## What failed", "\n".join(failures)]
    sections += ["## How it was measured", NOTES.format(beside=facts["beside_mib"]), "Made by `make bench`."]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=pathlib.Path, required=True)
    parser.add_argument("--results", type=pathlib.Path, required=True)
    options = parser.parse_args()
    parts = read(options.parts)
    figures = medians(parts)
    name = parts.facts["machine"]
    options.results.mkdir(parents=True, exist_ok=True)
    text = markdown(parts, figures, f"{name}.svg")
    (options.results / f"{name}.md").write_text(text)
    (options.results / f"{name}.svg").write_text(chart(parts, figures))
    judged = [vars(verdict) for verdict in verdicts(figures, parts.facts["sizes_mib"])]
    everything = {"facts": parts.facts, "wanted": judged, "torpor": parts.torpor, "peers": parts.others,
                  "density": parts.density}
    (options.results / f"{name}.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(text)
    print(f"Kept as {options.results}/{name}.md, .json and .svg")


if __name__ == "__main__":
    main()

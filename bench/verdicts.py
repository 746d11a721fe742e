"""What Torpor wants of itself, and whether what was measured holds it."""

from dataclasses import dataclass

PAUSE, REWRITTEN = "pause", "pause, all live data changed"
RESUME, ANSWER = "resume", "resume until the agent's first answer"
QUICK = "resume before the pause is saved"
STOPPED = "the guest stands still for a snapshot"
DURABLE = "pause until durable, all live data changed"
# The size at which Torpor is compared with its peers, in MiB.
COMPARED = 1024


@dataclass
class Figures:
    """Medians in milliseconds by MiB of live data: of Torpor's series, of every peer, and of dd."""

    torpor: dict[str, dict[int, float]]
    pause: dict[str, dict[int, float]]
    resume: dict[str, dict[int, float]]
    dd: dict[int, float]


@dataclass
class Verdict:
    wanted: str
    measured: str
    holds: str


def judge(wanted: str, measured: float | None, limit: float, text: str, at_least: bool = False) -> Verdict:
    if measured is None:
        return Verdict(wanted, "not measured", "–")
    holds = measured >= limit if at_least else measured <= limit
    return Verdict(wanted, text.format(measured), "yes" if holds else "**no**")


def verdicts(figures: Figures, sizes: list[int]) -> list[Verdict]:
    def worst(series: str) -> float | None:
        values = figures.torpor.get(series, {})
        return max(values.values(), default=None)

    def at_most(name: str, series: str, ms: float) -> Verdict:
        return judge(f"{name}: ≤ {ms} ms at every size", worst(series), ms, "{:.1f} ms at worst")

    def growth(name: str, series: str) -> Verdict:
        values = figures.torpor.get(series, {})
        ratio = values[4096] / values[128] if {128, 4096} <= values.keys() else None
        return judge(f"{name}: at 4 GiB ≤ 1.3 times 128 MiB", ratio, 1.3, "{:.2f} times")

    durable = figures.torpor.get(DURABLE, {})
    ratios = [durable[mib] / figures.dd[mib] for mib in sizes if mib in durable and mib in figures.dd]
    return [
        at_most("pause", PAUSE, 15),
        at_most("pause, all live data changed", REWRITTEN, 15),
        growth("pause", PAUSE),
        growth("pause, all live data changed", REWRITTEN),
        at_most("resume from the pool, answered", RESUME, 20),
        at_most("resume, until the agent's first answer", ANSWER, 60),
        at_most("resume before the pause is durable", QUICK, 5),
        at_most("create", "create", 25),
        at_most("stopped for a live snapshot, 100 MB dirtied", STOPPED, 40),
        judge("all live data durable: ≤ 1.5 times `dd conv=fsync` of as many bytes", max(ratios, default=None), 1.5,
              "{:.2f} times at worst"),
        *comparisons(figures)]


def comparisons(figures: Figures) -> list[Verdict]:
    """Like with like: a pause that has to save everything, and a resume until something in it has answered."""
    judged = []
    for operation, theirs, runsc_times, best_times, own_series in [
        ("pause", figures.pause, 150, 12, {REWRITTEN: "all live data changed"}),
        ("resume", figures.resume, 40, 10, {ANSWER: "until the agent's first answer", RESUME: "until answered"}),
    ]:
        there = {name: by_size[COMPARED] for name, by_size in theirs.items() if COMPARED in by_size}
        best = min(there, key=there.get, default=None)
        for series, qualified in own_series.items():
            own = figures.torpor.get(series, {}).get(COMPARED)
            for times, peer, called in [(runsc_times, "runsc", "runsc"), (best_times, best, "the best peer")]:
                ratio = there[peer] / own if own and peer in there else None
                named = f" ({best})" if called != "runsc" and best else ""
                judged.append(judge(f"{operation} at 1 GiB, {qualified}: ≥ {times} times as quick as {called}{named}",
                                    ratio, times, "{:.1f} times", at_least=True))
    return judged

"""docs/sdk-matrix.md: a row for each feature, a column for each release."""

from dataclasses import dataclass, field

from releases import FEATURES, LACKS, Lack, Release, lack

LANGUAGES = {"python": "Python", "javascript": "JavaScript"}


@dataclass
class Outcome:
    """What one run of a scenario said of each of its features: empty where it worked, else why not."""

    release: Release
    way: str
    flavour: str
    seconds: float = 0.0
    why: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> dict[str, str]:
        return {feature: why for feature, why in self.why.items() if why}

    @property
    def name(self) -> str:
        flavour = f" {self.flavour}" if self.release.language == "python" else ""
        return f"{LANGUAGES[self.release.language]} {self.release.version.text}{flavour}, by {self.way}"


HEAD = """\
# Which SDK releases work

Releases of every generation of the E2B SDKs, unmodified, each used as a program of its time would. This page is written by

    make sdk-matrix

which installs each release, runs one scenario for its generation against a server of its own (`e2e/matrix/`) and fails if
a cell is red. `make test` runs the oldest, a middle and the newest release. `make sdk-matrix VERSIONS='python==2.3.4
javascript==2.9.0'` tries others and leaves this page alone.

✓ works, – the release has no such thing (see below), ✗ does not work (see the footnote).

Python releases are run twice, through `Sandbox` and through `AsyncSandbox`; a cell is ✓ if both work. *Found by name* means
`E2B_DOMAIN`, TLS and a wildcard name: every release can do that. *By URL* means `E2B_API_URL` and `E2B_SANDBOX_URL`, plain
HTTP to one address; where a release can do both, it is run both ways, and a cell is ✓ if all of them work.
"""


def page(outcomes: list[Outcome], ran: str) -> str:
    """The whole page. `ran` says in one line what was run."""
    parts = [HEAD, f"{ran}\n"]
    notes: list[str] = []
    for language, title in LANGUAGES.items():
        ours = [outcome for outcome in outcomes if outcome.release.language == language]
        if ours:
            parts.append(f"## {title}\n\n{table(ours, notes)}")
    if notes:
        parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)) + "\n")
    parts.append(f"## What a release does not have\n\n{reasons(outcomes)}")
    return "\n".join(parts)


def table(outcomes: list[Outcome], notes: list[str]) -> str:
    """One language's table; what failed is added to `notes`, to which the cells refer by number."""
    releases = list(dict.fromkeys(outcome.release for outcome in outcomes))
    rows = [["", *(release.version.text for release in releases)]]
    rows.append(["found by", *("name, URL" if "URL" in release.ways else "name" for release in releases)])
    for feature, title in FEATURES.items():
        cells = [cell([o for o in outcomes if o.release == release], feature, notes) for release in releases]
        rows.append([title, *cells])
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---|" + ":-:|" * len(releases), *body]) + "\n"


def cell(outcomes: list[Outcome], feature: str, notes: list[str]) -> str:
    tried = [outcome for outcome in outcomes if feature in outcome.why]
    if not tried:
        return "–"
    numbers = []
    for outcome in tried:
        if outcome.why[feature]:
            why = outcome.why[feature].replace("`", "'").replace("\n", " ")
            notes.append(f"{outcome.name}: {FEATURES[feature]}: `{why}`")
            numbers.append(str(len(notes)))
    return f"✗ {', '.join(numbers)}" if numbers else "✓"


def reasons(outcomes: list[Outcome]) -> str:
    """Every reason for a dash, with the releases of this page it holds for."""
    holds: dict[Lack, list[Release]] = {}
    for outcome in outcomes:
        for feature in FEATURES:
            found = lack(outcome.release, outcome.way, outcome.flavour, feature)
            # What only one way of several lacks is no dash.
            if found and not any(feature in o.why for o in outcomes if o.release == outcome.release):
                releases = holds.setdefault(found, [])
                if outcome.release not in releases:
                    releases.append(outcome.release)
    lines = []
    for known in LACKS:
        releases = holds.get(known, [])
        if not releases:
            continue
        features = ", ".join(f"*{FEATURES[feature]}*" for feature in known.features)
        where = "; ".join(
            f"{title} {', '.join(release.version.text for release in releases if release.language == language)}"
            for language, title in LANGUAGES.items()
            if any(release.language == language for release in releases)
        )
        lines.append(f"- {features}: {known.reason} ({where}).")
    return "\n".join(lines) + "\n"

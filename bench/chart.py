"""A chart of lines on two logarithmic axes, as SVG that suits light and dark pages."""

import html
import math
from dataclasses import dataclass

WIDTH, HEIGHT = 1000, 470
LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT, GAP = 58, 62, 262, 340, 500
LABEL_HEIGHT = 15

# Class of a line: colour on a light page, on a dark page, and how it is drawn.
LOOKS = {
    "torpor": ("#0969da", "#58a6ff", "stroke-width: 3"),
    "torpor-2": ("#0969da", "#58a6ff", "stroke-width: 2; stroke-dasharray: 6 4"),
    "dd": ("#6e7781", "#8b949e", "stroke-width: 1.5; stroke-dasharray: 2 4"),
    "qemu-file": ("#9a6700", "#d29922", "stroke-width: 2"),
    "qemu-mapped-ram": ("#8250df", "#bc8cff", "stroke-width: 2"),
    "criu": ("#1a7f37", "#3fb950", "stroke-width: 2"),
    "runsc": ("#cf222e", "#ff7b72", "stroke-width: 2"),
}


@dataclass
class Line:
    """One contender: its look, its name, and milliseconds by MiB."""

    look: str
    name: str
    points: dict[int, float]


@dataclass
class Panel:
    title: str
    lines: list[Line]


def style() -> str:
    def colours(which: int) -> str:
        return "".join(f".{look} {{ stroke: {looks[which]}; fill: {looks[which]}; }} " for look, looks in LOOKS.items())

    drawn = "".join(f"path.{look} {{ {looks[2]}; }} " for look, looks in LOOKS.items())
    return (
        "svg { font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif; } "
        ".page { fill: #ffffff; } text { fill: #1f2328; } .quiet { fill: #59636e; } .grid { stroke: #d1d9e0; } "
        ".grid.fine { opacity: .45; } "
        f"{colours(0)}"
        "@media (prefers-color-scheme: dark) { .page { fill: #0d1117; } text { fill: #f0f6fc; } "
        f".quiet {{ fill: #9198a1; }} .grid {{ stroke: #3d444d; }} {colours(1)}}} "
        f"path {{ fill: none !important; stroke-linejoin: round; }} {drawn}"
        "text.label { stroke: none; } .title { font-size: 15px; font-weight: 600; }")


def size_text(mib: int) -> str:
    return f"{mib // 1024} GiB" if mib % 1024 == 0 else f"{mib} MiB"


def time_text(ms: float) -> str:
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


def spread(wanted: list[float], least: float, most: float) -> list[float]:
    """Places for labels, each near where it is wanted, none over another; `wanted` is in order."""
    places = []
    for place in wanted:
        places.append(max(place, places[-1] + LABEL_HEIGHT if places else least))
    for index in range(len(places) - 1, -1, -1):
        below = most if index == len(places) - 1 else places[index + 1] - LABEL_HEIGHT
        places[index] = min(places[index], below)
    return places


def svg(title: str, subtitle: str, panels: list[Panel]) -> str:
    values = [ms for panel in panels for line in panel.lines for ms in line.points.values()]
    sizes = sorted({mib for panel in panels for line in panel.lines for mib in line.points})
    if not values:
        return ""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    first, last = math.log2(sizes[0]), math.log2(sizes[-1])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{html.escape(title)}</title><style>{style()}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>']

    def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> None:
        parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(said)}</text>')

    text(LEFT - 40, 26, title, "title")
    text(LEFT - 40, HEIGHT - 14, subtitle, "quiet")
    for index, panel in enumerate(panels):
        left = LEFT + index * GAP

        def across(mib: int) -> float:
            return left + (PLOT_WIDTH * (math.log2(mib) - first) / (last - first) if last > first else PLOT_WIDTH / 2)

        def down(ms: float) -> float:
            return TOP + PLOT_HEIGHT * (high - math.log10(ms)) / (high - low)

        text(left, TOP - 12, panel.title, "quiet")
        for decade in range(low, high + 1):
            text(left - 8, down(10 ** decade) + 4, time_text(10.0 ** decade), "quiet", "end")
            for step in range(1, 10 if decade < high else 2):
                y = down(step * 10 ** decade)
                parts.append(f'<line class="grid{" fine" if step > 1 else ""}" x1="{left}" x2="{left + PLOT_WIDTH}" '
                             f'y1="{y:.1f}" y2="{y:.1f}"/>')
        for mib in sizes:
            x = across(mib)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + PLOT_HEIGHT}"/>')
            text(x, TOP + PLOT_HEIGHT + 18, size_text(mib), "quiet", "middle")
        # From the top down, as the labels at the right are.
        lines = sorted((line for line in panel.lines if line.points),
                       key=lambda line: -line.points[max(line.points)])
        for line in lines:
            points = sorted(line.points.items())
            path = "M" + " L".join(f"{across(mib):.1f} {down(ms):.1f}" for mib, ms in points)
            parts.append(f'<path class="{line.look}" d="{path}"/>')
            for mib, ms in points:
                parts.append(f'<circle class="{line.look}" cx="{across(mib):.1f}" cy="{down(ms):.1f}" r="3.2">'
                             f"<title>{html.escape(line.name)}, {size_text(mib)}: {ms:.1f} ms</title></circle>")
        ends = [down(line.points[max(line.points)]) + 4 for line in lines]
        for line, y in zip(lines, spread(ends, TOP + 4, TOP + PLOT_HEIGHT + 4)):
            text(left + PLOT_WIDTH + 10, y, line.name, f"label {line.look}")
    return "\n".join([*parts, "</svg>", ""])

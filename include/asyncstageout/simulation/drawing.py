"""Line charts as SVG files: for a document, in any reader of it, on light and on dark paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from asyncstageout.core.scales import nice

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 56, 28
COLOURS = ("#3b76c4", "#d1662b", "#3f9a57", "#a34fb5", "#b58a1b", "#6b7280")
MARK_S = 3 * 3600.0
BAR_PX = 22
LEGEND_PX = 7
"""Width of a letter of the legend."""
_SVG = "http://www.w3.org/2000/svg"
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#667}line.grid{stroke:#8884}"
    "polyline{fill:none;stroke-width:1.6}"
)

Point = tuple[float, float]


def hour(at_s: float) -> str:
    """Say a time of the day.

    >>> hour(6 * 3600)
    '6:00'
    """
    return f"{at_s / 3600:.0f}:00"


def chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    say: Callable[[float], str],
    top: float | None = None,
    *,
    mark_s: float = MARK_S,
    say_time: Callable[[float], str] = hour,
) -> str:
    """Return a chart over time, such as the hours of a day.

    Args:
        series: title of each line -> its points: seconds since the left edge, value.
        say: writes a value with its unit.
        top: value at the upper edge; None: a round number above all values.
        mark_s: seconds between two times at the lower edge, which ``say_time`` writes.
    """
    largest = max((value for points in series.values() for _, value in points), default=0.0)
    top = top or (nice(largest) if largest > 1 else nice(largest * 1000) / 1000)
    end_s = max((at_s for points in series.values() for at_s, _ in points), default=1.0)
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(point: Point) -> str:
        x, y = LEFT + point[0] / end_s * plot_w, TOP + plot_h * (1 - min(point[1] / top, 1.0))
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="{_SVG}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<text x="{LEFT}" y="16" style="font-weight:600">{escape(title)}</text>',
    ]
    for part in (0.0, 0.5, 1.0):
        y = TOP + plot_h * (1 - part)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(say(top * part))}</text>'
        )
    for mark in range(round(end_s / mark_s) + 1):
        x = LEFT + mark * mark_s / end_s * plot_w
        words = escape(say_time(mark * mark_s))
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{words}</text>')
    across = LEFT
    for colour, (name, points) in zip(COLOURS, series.items(), strict=False):
        parts.append(f'<rect x="{across}" y="28" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{across + 16}" y="34">{escape(name)}</text>')
        across += 30 + LEGEND_PX * len(name)
        parts.append(f'<polyline stroke="{colour}" points="{" ".join(map(place, points))}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def bars(title: str, rows: Mapping[str, Mapping[str, float]], say: Callable[[float], str]) -> str:
    """Return a chart with one bar for each row, made of its parts.

    Args:
        rows: name of each bar -> its parts, the same in all: name, value from 0.
        say: writes the sum of a bar.
    """
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    largest = max((sum(parts.values()) for parts in rows.values()), default=0.0) or 1.0
    height, left = TOP + BAR_PX * len(rows) + 8, 150
    plot_w = WIDTH - left - 80
    drawn = [
        f'<svg xmlns="{_SVG}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<text x="8" y="16" style="font-weight:600">{escape(title)}</text>',
    ]
    across = 8
    for colour, name in zip(COLOURS, names, strict=False):
        drawn.append(f'<rect x="{across}" y="28" width="12" height="4" fill="{colour}"/>')
        drawn.append(f'<text x="{across + 16}" y="34">{escape(name)}</text>')
        across += 30 + LEGEND_PX * len(name)
    for place, (row, parts) in enumerate(rows.items()):
        y, x = TOP + BAR_PX * place, float(left)
        drawn.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(row)}</text>')
        for colour, name in zip(COLOURS, names, strict=False):
            width = parts.get(name, 0.0) / largest * plot_w
            drawn.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>')
            x += width
        drawn.append(f'<text x="{x + 6:.1f}" y="{y + 12}">{escape(say(sum(parts.values())))}</text>')
    return "\n".join([*drawn, "</svg>"]) + "\n"

"""Line charts as SVG files: for a document, in any reader of it, on light and on dark paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from asyncstageout.core.scales import nice

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 56, 28
COLOURS = ("#3b76c4", "#d1662b", "#3f9a57", "#a34fb5", "#b58a1b", "#6b7280")
MARKS_H = 3
LEGEND_PX = 7
"""Width of a letter of the legend."""
_SVG = "http://www.w3.org/2000/svg"
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#667}line.grid{stroke:#8884}"
    "polyline{fill:none;stroke-width:1.6}"
)

Point = tuple[float, float]


def chart(
    title: str, series: Mapping[str, Sequence[Point]], say: Callable[[float], str], top: float | None = None
) -> str:
    """Return a chart over the hours of a day.

    Args:
        series: title of each line -> its points: seconds of the day, value.
        say: writes a value with its unit.
        top: value at the upper edge; None: a round number above all values.
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
    for hour in range(0, round(end_s / 3600) + 1, MARKS_H):
        x = LEFT + hour * 3600 / end_s * plot_w
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{hour}:00</text>')
    across = LEFT
    for colour, (name, points) in zip(COLOURS, series.items(), strict=False):
        parts.append(f'<rect x="{across}" y="28" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{across + 16}" y="34">{escape(name)}</text>')
        across += 30 + LEGEND_PX * len(name)
        parts.append(f'<polyline stroke="{colour}" points="{" ".join(map(place, points))}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"

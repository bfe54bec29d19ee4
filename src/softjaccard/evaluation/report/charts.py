"""Charts as inline SVG, drawn at about the size they are shown at, so that their text stays legible on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from softjaccard.evaluation.report.markup import Markup, join, tag

_WIDTH = 360


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, colour, points (x, y) by rising x, and whether it is only the background."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


@dataclass(frozen=True)
class _Axes:
    """Where values lie in the drawing: a box, and the values at its edges."""

    left: float
    right: float
    top: float
    bottom: float
    low: tuple[float, float]
    high: tuple[float, float]

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * (value - self.low[0]) / (self.high[0] - self.low[0])

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low[1]) / (self.high[1] - self.low[1])


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, a few more than `most` at the worst.

    Example:
        >>> ticks(0.13, 0.58, 5)
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    """
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / most))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if span / (magnitude * factor) <= most)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, digits) for number in range(first, max(last, first + 1) + 1)]


def line_chart(lines: Sequence[Line], description: str, *, across: str) -> Markup:
    """Draw lines over a common axis; each has at least one point.

    Args:
        lines: What to draw; faint ones lie below the others.
        description: For those who cannot see the chart.
        across: Name of the horizontal axis.
    """
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    rows, columns = ticks(min(ys), max(ys), 5), ticks(min(xs), max(xs), 5)
    low, high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    axes = _Axes(44, _WIDTH - 12, 10, 184, (low, rows[0]), (high, rows[-1]))
    columns = [value for value in columns if low <= value <= high]
    drawn = [_path(axes, line) for line in sorted(lines, key=lambda line: not line.faint)]
    return _svg(220, description, _grid(axes, columns, rows), *drawn, _text(_WIDTH - 12, 214, across, "end"))


def _path(axes: _Axes, line: Line) -> Markup:
    points = [(axes.x(x), axes.y(y)) for x, y in line.points]
    path = tag(
        "polyline",
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        fill="none",
        stroke=line.colour,
        stroke_width=1.2 if line.faint else 2,
        stroke_dasharray="3 2" if line.faint else None,
        stroke_opacity=0.75 if line.faint else None,
    )
    if line.faint and len(points) > 1:
        return path
    dots = [
        tag("circle", tag("title", f"{line.name}: {value:.4g} at {at:g}"), cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.6)
        for (x, y), (at, value) in zip(points, line.points, strict=True)
    ]
    return join(path, tag("g", *dots, fill=line.colour))


def reliability_diagram(sums: Tensor, colour: str, description: str) -> Markup:
    """Draw the share of hits in each bin of the confidence, and below it each bin's share of the pixels.

    Args:
        sums: (3, bins): pixels, confidence and hits; at least one pixel.
        colour: Of the bars.
        description: For those who cannot see the chart.
    """
    pixels, confidence, hits = sums.tolist()
    bins, total = len(pixels), sum(pixels)
    upper = _Axes(44, _WIDTH - 12, 10, 210, (0, 0), (1, 1))
    lower = _Axes(44, _WIDTH - 12, 226, 276, (0, 0), (1, max(pixels) / total))
    marks = []
    for number, count in enumerate(pixels):
        if not count:
            continue
        left, right, share = number / bins, (number + 1) / bins, count / total
        accuracy, mean = hits[number] / count, confidence[number] / count
        says = (
            f"confidence {left:.2f} to {right:.2f}: mean {100 * mean:.1f} %, hits {100 * accuracy:.1f} %, "
            f"{100 * share:.1f} % of the pixels"
        )
        marks += [
            _bar(upper, left, right, accuracy, colour, says),
            _bar(lower, left, right, share, colour, says),
            tag("circle", tag("title", says), cx=f"{upper.x(mean):.1f}", cy=f"{upper.y(accuracy):.1f}", r=3.4,
                class_="mean"),
        ]  # fmt: skip
    diagonal = tag("line", x1=upper.left, y1=upper.bottom, x2=upper.right, y2=upper.top, class_="ideal")
    return _svg(
        316,
        description,
        _grid(upper, [], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        _grid(lower, [0, 0.2, 0.4, 0.6, 0.8, 1], [0, lower.high[1]], percent=True),
        *marks,
        diagonal,
        _text(_WIDTH - 12, 310, "confidence", "end"),
        _text(48, 21, "hits", "start"),
        _text(48, 237, "pixels", "start"),
    )


def interval_mark(value: float, low: float, high: float, reach: float, colour: str) -> Markup:
    """Draw a value and its interval on a scale from -reach to reach with a line at zero."""
    axes = _Axes(6, 114, 0, 20, (-reach, 0), (reach, 1))
    return tag(
        "svg",
        tag("line", x1=60, y1=0, x2=60, y2=20, class_="zero"),
        tag("line", x1=f"{axes.x(low):.1f}", y1=10, x2=f"{axes.x(high):.1f}", y2=10, stroke=colour, stroke_width=2),
        tag("circle", cx=f"{axes.x(value):.1f}", cy=10, r=4, fill=colour),
        viewBox="0 0 120 20",
        width=120,
        height=20,
        aria_hidden="true",
    )


def _bar(axes: _Axes, left: float, right: float, height: float, colour: str, says: str) -> Markup:
    return tag(
        "rect",
        tag("title", says),
        x=f"{axes.x(left) + 0.75:.1f}",
        y=f"{axes.y(height):.1f}",
        width=f"{axes.x(right) - axes.x(left) - 1.5:.1f}",
        height=f"{axes.bottom - axes.y(height):.1f}",
        fill=colour,
        fill_opacity=0.75,
    )


def _grid(axes: _Axes, columns: Sequence[float], rows: Sequence[float], *, percent: bool = False) -> Markup:
    lines, texts = [], []
    for value in rows:
        y = axes.y(value)
        lines.append(tag("line", x1=axes.left, y1=f"{y:.1f}", x2=axes.right, y2=f"{y:.1f}"))
        texts.append(_text(axes.left - 6, y + 4, f"{100 * value:.0f} %" if percent else f"{value:g}", "end"))
    texts += [_text(axes.x(value), axes.bottom + 15, f"{value:g}", "middle") for value in columns]
    return join(tag("g", *lines, class_="grid"), *texts)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _svg(height: int, description: str, *children: Markup) -> Markup:
    return tag("svg", *children, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=description)

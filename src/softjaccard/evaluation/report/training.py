"""Section of the report: curves of the training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from softjaccard.evaluation.report.charts import Line, line_chart
from softjaccard.evaluation.report.markup import Markup, join, tag
from softjaccard.evaluation.report.parts import Run, legend, score_label, swatch

_CURVES = {"loss": 1, "mIoU_D": 100, "ECE": 100}
"""What is drawn, and the factor on it."""
_MOST_POINTS = 300
"""Of a curve; more are averaged, because a chart has no more pixels."""


def curves(runs: Sequence[Run]) -> Markup:
    """Draw what was logged while the runs were trained."""
    missing = [run.name for run in runs if run.history is None]
    figures = []
    for name, factor in _CURVES.items():
        lines = [
            Line(f"{run.name}, {stage}", run.colour, points, faint=stage == "train")
            for run in runs
            for stage in ("train", "val")
            if (points := _thinned((run.history or {}).get(f"{stage}/{name}", []), factor))
        ]
        if lines:
            description = f"{name} over the steps of the training: {', '.join(line.name for line in lines)}"
            caption = tag("figcaption", score_label(name), ", %" if factor == 100 else None)
            figures.append(tag("figure", caption, line_chart(lines, description, across="step")))
    note = f"No metrics.csv, so no curves: {', '.join(missing)}." if missing else None
    if not figures:
        return tag("p", note or "The logs hold no values.")
    keys = [(swatch(run.colour), run.name) for run in runs if run.history]
    keys += [
        (tag("span", class_="key"), "validation"),
        (tag("span", class_="key faint"), "training, with augmentation, while the weights change"),
    ]
    return join(note and tag("p", note), legend(keys), tag("div", *figures, class_="figures"))


def _thinned(points: Sequence[tuple[float, float]], factor: float) -> list[tuple[float, float]]:
    """Return finite points, times a factor, as means of neighbours if there are too many."""
    finite = np.array([point for point in points if np.isfinite(point).all()]).reshape(-1, 2)
    parts = np.array_split(finite, min(len(finite), _MOST_POINTS)) if len(finite) else []
    return [(float(part[:, 0].mean()), factor * float(part[:, 1].mean())) for part in parts]

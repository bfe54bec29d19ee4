"""Section of the report: reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from softjaccard.evaluation.report.charts import reliability_diagram
from softjaccard.evaluation.report.markup import Markup, join, tag
from softjaccard.evaluation.report.parts import Run, frequent_classes, legend, score_text, small, swatch


def calibration(runs: Sequence[Run]) -> Markup:
    """Draw the most probable class of each run, and behind a fold each class."""
    figures, details = [], []
    for run in runs:
        result = run.result
        score = f"ECE {score_text('ECE', result.scores['ECE'])} %" if "ECE" in result.scores else None
        figures.append(_reliability(run, result.calibration.sum(0), run.name, score))
        classes = [
            _reliability(run, result.class_calibration[index], result.classes[index])
            for index in frequent_classes(result)
            if result.class_calibration[index, 2].sum()
        ]
        summary = tag("summary", "Each class, ", swatch(run.colour), run.name)
        what = tag("p", "Probability of the class at all pixels, and how often they are labelled so.", class_="muted")
        details.append(tag("details", summary, what, tag("div", *classes, class_="figures")))
    keys = legend([
        (tag("span", class_="key dot"), "mean confidence and share of hits of a bin"),
        (tag("span", class_="key ideal"), "confidence = hits; bars below it are over-confident"),
    ])  # fmt: skip
    note = "How often the predicted class is right, by its probability; below, the share of the pixels in each bin."
    return join(tag("p", note, class_="muted"), keys, tag("div", *figures, class_="figures"), *details)


def _reliability(run: Run, sums: Tensor, name: str, score: str | None = None) -> Markup:
    says = f"Reliability of {name}: share of hits by confidence"
    chart = reliability_diagram(sums, run.colour, says) if sums[0].sum() else tag("p", "No pixel counts.")
    return tag("figure", tag("figcaption", swatch(run.colour), name, small(score)), chart)

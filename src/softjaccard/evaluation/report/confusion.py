"""Section of the report: confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

from softjaccard.evaluation.report.markup import Markup, join, tag
from softjaccard.evaluation.report.parts import Run, frequent_classes, hex_colour, small, swatch
from softjaccard.evaluation.results import EvaluationResult


def confusion(runs: Sequence[Run]) -> Markup:
    """Make a matrix for each run."""
    note = (
        "Where the pixels of each class (row) went (column), in percent of the row; hover over a cell for its pixels. "
        "Cells under half a percent are left blank."
    )
    figures = [tag("figure", tag("figcaption", swatch(run.colour), run.name), *_matrix(run.result)) for run in runs]
    return join(tag("p", note, class_="muted"), tag("div", *figures, class_="matrices"))


def _matrix(result: EvaluationResult) -> list[Markup]:
    counts = result.confusion
    kept = frequent_classes(result)
    left_out = None
    if len(kept) < len(counts):
        left_out = small(f"The {len(kept)} most frequent of {len(counts)} classes; shares are of all pixels.")
    names = [result.classes[index] for index in kept]
    swatches = [swatch(hex_colour(result.colours[index])) for index in kept]
    head = [tag("th", tag("span", name), scope="col") for name in names]
    rows = []
    for index, name, square in zip(kept, names, swatches, strict=True):
        total = int(counts[index].sum())
        cells = [_cell(int(counts[index, column]), total, name, result.classes[column]) for column in kept]
        rows.append(tag("tr", tag("th", name, " ", square, scope="row"), *cells))
    table = tag("table", tag("thead", tag("tr", tag("td"), *head)), tag("tbody", *rows), class_="confusion")
    return [left_out or Markup(), tag("div", table, class_="scroll", tabindex=0)]


def _cell(count: int, total: int, label: str, prediction: str) -> Markup:
    share = count / total if total else 0.0
    of = f"{100 * share:.1f} % of {label}" if total else f"no pixel is labelled {label}"
    kinds = [name for name, holds in (("full", share > 0.55), ("diagonal", label == prediction)) if holds]
    return tag(
        "td",
        f"{100 * share:.0f}" if share >= 0.005 else None,
        title=f"label {label}, predicted {prediction}: {count} pixels, {of}",
        style=f"--share: {share:.3f}" if share >= 0.0005 else None,
        class_=" ".join(kinds) or None,
    )

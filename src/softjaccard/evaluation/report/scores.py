"""Sections of the report: scores, their differences between runs, and the IoU of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from softjaccard.data.colours import hex_colour
from softjaccard.evaluation.report.charts import interval_mark
from softjaccard.evaluation.report.intervals import Range, score_differences, score_intervals
from softjaccard.evaluation.report.markup import Markup, join, tag
from softjaccard.evaluation.report.parts import (
    Run,
    is_fraction,
    legend,
    score_label,
    score_text,
    small,
    swatch,
    table,
)
from softjaccard.evaluation.results import EvaluationResult

_MEANINGS = {
    "mIoU_D": "IoU of each class over all images together, mean over classes",
    "mIoU_I": "IoU of each class in each image, mean over the image's classes, then over images",
    "mIoU_C": "IoU of each class in each image, mean over the class's images, then over classes",
    "mIoU_I_worst5": "as mIoU I, of the lowest 5 % of the images",
    "mIoU_C_worst5": "as mIoU C, of the lowest 5 % of each class's images",
    "mDice_D": "Dice score of each class over all images together, mean over classes",
    "mAcc_D": "share of each class's pixels that are found, mean over classes",
    "Acc": "share of all pixels that are right",
    "ECE": "mean distance between confidence and share of hits; less is better",
    "SCE": "as ECE for the probability of each class, mean over classes; less is better",
    "Brier": "squared distance between probabilities and label; less is better",
    "NLL": "cross-entropy, in nats; less is better",
    "ECE_unscaled": "ECE before the temperature",
    "NLL_unscaled": "NLL before the temperature",
    "loss": "what the training minimised, mean over test batches; less is better",
}
_MEANINGS_OF_VOTES = {
    "mSoftIoU_D_votes": "IoU of each class's probability and share of the votes, mean over classes",
    "mSoftDice_D_votes": "the same with the Dice score",
    "mSoftDice_I_votes": "the same in each image, mean over the image's classes, then over images",
    "TV_votes": "share of the probability that would have to move to other classes; less is better",
    "ECE_votes": "as ECE, with shares of the votes for hits; less is better",
    "Brier_votes": "squared distance between probabilities and shares of the votes; less is better",
    "NLL_votes": "cross-entropy, in nats; less is better",
    "KL_votes": "NLL less that of the shares themselves, so that 0 can be reached; less is better",
}
"""Scores against the distribution of several annotators' votes."""
_ALL_MEANINGS = _MEANINGS | _MEANINGS_OF_VOTES
_COUNTED = ("mIoU_D", "mIoU_I", "mIoU_C", "mIoU_I_worst5", "mIoU_C_worst5", "mDice_D", "mAcc_D", "Acc")
"""Scores of a table of counts, of which the report gives intervals."""
_LESS_IS_BETTER = ("ECE", "SCE", "Brier", "TV")


def scores(runs: Sequence[Run]) -> Markup:
    """Make the table of scores with intervals, and behind a fold the rest."""
    names = dict.fromkeys(name for run in runs for name in run.result.scores if "/" not in name)
    intervals = {run: score_intervals(run.result, _COUNTED) for run in runs}
    main = [_score_row(name, intervals) for name in _MEANINGS if name in names]
    heads = ["Score", *_run_heads(runs)]
    if of_votes := [_score_row(name, intervals) for name in _MEANINGS_OF_VOTES if name in names]:
        title = "Against all annotators' votes; above, against the label of most votes"
        main += [tag("tr", tag("th", tag("b", title), scope="rowgroup", colspan=len(heads))), *of_votes]
    more = [_score_row(name, intervals) for name in names if name not in _ALL_MEANINGS]
    note = "In percent, except NLL, KL and loss. Below a score is its 95 % interval, from resampling the test images."
    details = tag("details", tag("summary", "Further scores"), table(heads, more)) if more else None
    return join(tag("p", note, class_="muted"), table(heads, main), details)


def _score_row(name: str, intervals: Mapping[Run, Mapping[str, Range]]) -> Markup:
    cells = []
    for run, ranges in intervals.items():
        value = run.result.scores.get(name)
        text = "not measured" if value is None else tag("b", score_text(name, value))
        between = (
            small(f"{score_text(name, ranges[name].low)} to {score_text(name, ranges[name].high)}")
            if name in ranges
            else None
        )
        cells.append(tag("td", text, between, class_="number"))
    return tag("tr", tag("th", score_label(name), small(_ALL_MEANINGS.get(name)), scope="row"), *cells)


def _run_heads(runs: Sequence[Run]) -> list[Markup]:
    return [tag("div", swatch(run.colour), run.name, class_="run") for run in runs]


def differences(runs: Sequence[Run]) -> Markup:
    """Compare each run with the first one, where both were tested on the same images."""
    first, *others = runs
    reasons = {run: _unlike(first.result, run.result) for run in others}
    found = {run: _main_differences(first.result, run.result) for run, reason in reasons.items() if not reason}
    ends = [abs(end) for each in found.values() for _, *interval in each.values() for end in interval]
    reach = max(ends, default=0.0) or 1.0  # one scale for all pictures
    parts = []
    for run, reason in reasons.items():
        title = tag("h3", swatch(run.colour), f"{run.name} less {first.name}")
        if reason:
            parts.append(tag("div", title, tag("p", f"Not compared: {reason}.")))
        else:
            rows = [_difference_row(name, interval, reach, run) for name, interval in found[run].items()]
            parts.append(tag("div", title, table(["Score", "Difference", "Verdict", "Interval"], rows)))
    note = (
        f"Each run less the first one, {first.name}, on the same images, in percentage points. The interval is from "
        "resampling the test images, the same ones for both runs; it says nothing about other seeds of the training."
    )
    return join(tag("p", note, class_="muted"), tag("div", *parts, class_="comparisons"))


def _main_differences(first: EvaluationResult, second: EvaluationResult) -> dict[str, Range]:
    """Return those of the main table's scores that are fractions, in its order."""
    found = score_differences(first, second, _COUNTED)
    return {name: found[name] for name in _ALL_MEANINGS if name in found and is_fraction(name)}


def _unlike(first: EvaluationResult, second: EvaluationResult) -> str | None:
    """Say why images cannot be compared one by one, if so."""
    if first.classes != second.classes:
        return "the runs have different classes"
    if first.images != second.images:
        common = len(set(first.images) & set(second.images))
        return (
            f"the runs were tested on different images ({len(first.images)} and {len(second.images)}, "
            f"{common} of them in both)"
        )
    labelled = (result.counts[..., 0] + result.counts[..., 2] for result in (first, second))
    if not torch.equal(*labelled):
        return "the labels of the images differ, by their size or their content"
    return None


def _difference_row(name: str, interval: Range, reach: float, run: Run) -> Markup:
    value, low, high = interval
    better = not name.startswith(_LESS_IS_BETTER)
    verdict = "not separable from zero"
    if low > 0 or high < 0:
        verdict = f"{'higher' if low > 0 else 'lower'}, {'better' if better == (low > 0) else 'worse'}"
    return tag(
        "tr",
        tag("th", score_label(name), scope="row"),
        tag("td", tag("b", f"{100 * value:+.2f}"), small(f"{100 * low:+.2f} to {100 * high:+.2f}"), class_="number"),
        tag("td", verdict),
        tag("td", interval_mark(value, low, high, reach, run.colour)),
    )


def class_bars(runs: Sequence[Run]) -> Markup:
    """Draw bars of all runs side by side, for each set of classes."""
    parts = []
    for members in _groups(runs):
        first = members[0].result
        rows = [
            tag(
                "tr",
                tag("th", swatch(hex_colour(colour)), name, scope="row"),
                tag("td", *(_class_bar(run, name) for run in members)),
            )
            for name, colour in zip(first.classes, first.colours, strict=True)
        ]
        parts += [
            legend([(swatch(run.colour), run.name) for run in members]),
            tag("table", tag("tbody", *rows), class_="bars"),
        ]
    note = "IoU_D in percent: counts of all images together. Runs are in the order of the legend."
    return join(tag("p", note, class_="muted"), *parts)


def _class_bar(run: Run, name: str) -> Markup:
    value = run.result.scores.get(f"IoU_D/{name}")
    if value is None:
        return tag("div", "neither labelled nor predicted", class_="bar muted")
    style = f"--share: {value:.4f}; background: {run.colour}"
    title = f"{run.name}, {name}: {100 * value:.1f} %"
    return tag("div", tag("i", style=style), f"{100 * value:.1f}", class_="bar", title=title)


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs with the same classes together."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.result.classes, []).append(run)
    return list(groups.values())

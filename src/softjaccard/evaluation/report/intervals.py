"""How far the scores of a test could be off by chance, from resampling the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from softjaccard.evaluation.results import EvaluationResult
from softjaccard.metrics import bootstrap_interval, paired_bootstrap, soft_scores
from softjaccard.metrics.bootstrap import draw_images, percentiles
from softjaccard.statistics import FIELDS, RegionStatistics

RESAMPLES = 2000
"""Draws; the ends of a 95 % interval then rest on 50 of them each."""
_CHUNK = 2**21
"""Numbers held at a time."""


class Range(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def score_intervals(result: EvaluationResult, names: Sequence[str]) -> dict[str, Range]:
    """Return the intervals of scores of a table of counts, by the names of `fine_grained_iou`, and of sums."""
    found = {name: bootstrap_interval(result.counts, name, resamples=RESAMPLES) for name in names}
    ranges = {name: Range(each.score, each.low, each.high) for name, each in found.items()}
    drawn = _drawn_once(result)
    return ranges | {
        name: Range(result.scores[name], *percentiles(values))
        for name, values in drawn.items()
        if name in result.scores
    }


def score_differences(first: EvaluationResult, second: EvaluationResult, names: Sequence[str]) -> dict[str, Range]:
    """Return the scores of the second less those of the first, of which each draw takes the same images."""
    found = {name: paired_bootstrap(second.counts, first.counts, name, resamples=RESAMPLES) for name in names}
    ranges = {name: Range(each.difference, each.low, each.high) for name, each in found.items()}
    drawn, others = _drawn_once(second), _drawn_once(first)
    return ranges | {
        name: Range(second.scores[name] - first.scores[name], *percentiles(drawn[name] - others[name]))
        for name in drawn
        if name in others and name in first.scores and name in second.scores
    }


@lru_cache(maxsize=16)
def _drawn_once(result: EvaluationResult) -> dict[str, Tensor]:
    """Return the drawn scores of a result, which a report of several runs needs often."""
    return drawn_scores(result.image_sums)


def drawn_scores(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the `sum_scores` of sets of images drawn with replacement, (draws,).

    The draws depend on the number of images alone, so that those of several runs are of the same images.
    """

    def of_draw(drawn: Tensor) -> dict[str, Tensor]:
        return sum_scores({name: rows[drawn] for name, rows in sums.items()})

    draws = draw_images(len(sums["calibration"]), RESAMPLES, seed=0)
    at_once = max(1, _CHUNK // sum(rows.numel() for rows in sums.values()))
    scores: dict[str, Tensor] = torch.vmap(of_draw, chunk_size=at_once)(draws)
    return scores


def sum_scores(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores of images that follow from the sums over each of them.

    Args:
        sums: `image_sums` of an `EvaluationResult`.

    Returns:
        Float64 scalars by the names of the result's scores: ECE and MCE, where there are sums for them SCE, Brier and
        NLL, and against the votes all of these and those of `soft_scores`.
    """
    scores = _calibration_scores(sums)
    of_votes = {name.removesuffix("_votes"): rows for name, rows in sums.items() if name.endswith("_votes")}
    if of_votes:
        fields = {name: of_votes[name] for name in FIELDS if name in of_votes}
        statistics = RegionStatistics(**fields, soft=True, activation="softmax")
        against_votes = _calibration_scores(of_votes) | soft_scores(statistics)
        scores |= {f"{name}_votes": score for name, score in against_votes.items() if score.ndim == 0}
    return scores


def _calibration_scores(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `calibration_scores` that need no finer bins."""
    pixels, confidence, hits = sums["calibration"].sum(0)
    gaps, total = (confidence - hits).abs(), pixels.sum().clamp(min=1)
    scores = {"ECE": gaps.sum() / total, "MCE": (gaps / pixels.clamp(min=1)).amax()}
    if "losses" in sums:
        scores["Brier"], scores["NLL"] = sums["losses"].sum(0) / total
        scores["SCE"] = sums["class_gaps"].sum(0).abs().sum(1).mean() / total
    return scores

"""How far the scores of a report could be off by chance, from resampling the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softjaccard.evaluation.results import EvaluationResult
from softjaccard.metrics import bootstrap_interval, paired_bootstrap

RESAMPLES = 2000
"""Draws; the ends of a 95 % interval then rest on 50 of them each."""


class Range(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def score_intervals(result: EvaluationResult, names: Sequence[str]) -> dict[str, Range]:
    """Return the intervals of scores of a table of counts, by the names of `fine_grained_iou`, and of ECE."""
    found = {name: bootstrap_interval(result.counts, name, resamples=RESAMPLES) for name in names}
    ranges = {name: Range(each.score, each.low, each.high) for name, each in found.items()}
    return ranges | {"ECE": _range(_ece(result.calibration[None])[0], _drawn_ece(result.calibration))}


def score_differences(first: EvaluationResult, second: EvaluationResult, names: Sequence[str]) -> dict[str, Range]:
    """Return the scores of the second less those of the first, of which each draw takes the same images."""
    found = {name: paired_bootstrap(second.counts, first.counts, name, resamples=RESAMPLES) for name in names}
    ranges = {name: Range(each.difference, each.low, each.high) for name, each in found.items()}
    return ranges | {"ECE": ece_difference(first.calibration[None], second.calibration[None])}


def ece_difference(first: Tensor, second: Tensor) -> Range:
    """Return the ECE of the second less that of the first, each averaged over seeds.

    Args:
        first: (S, N, 3, bins): pixels, confidence and hits of each seed's images.
        second: Likewise, of the same images; the number of seeds may be another.
    """
    drawn_first, drawn_second = (torch.stack([_drawn_ece(sums) for sums in runs]).mean(0) for runs in (first, second))
    return _range(_ece(second).mean() - _ece(first).mean(), drawn_second - drawn_first)


def _drawn_ece(sums: Tensor) -> Tensor:
    """ECE of sets of images drawn with replacement, (draws,); the draws depend on the number of images alone."""
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    return _ece((times @ sums.flatten(1)).reshape(-1, 1, *sums.shape[1:]))


def _ece(sums: Tensor) -> Tensor:
    """ECE of sets of images, (sets,), from (sets, images, 3, bins)."""
    pixels, confidence, hits = sums.sum(1).unbind(1)
    return (confidence - hits).abs().sum(1) / pixels.sum(1).clamp(min=1)


def _range(value: Tensor, draws: Tensor) -> Range:
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return Range(value.item(), low, high)

"""Intervals of ECE against a plain loop over the same draws; those of IoU are tested with the metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from made_up_results import made_up
from softjaccard.evaluation.report.intervals import RESAMPLES, ece_difference, score_differences, score_intervals
from softjaccard.evaluation.results import EvaluationResult
from softjaccard.metrics import bootstrap_interval, paired_bootstrap


def drawn_ece(result: EvaluationResult) -> list[float]:
    """ECE of each draw, one after the other."""
    draws = torch.randint(6, (RESAMPLES, 6), generator=torch.Generator().manual_seed(0)).numpy()
    sums = result.calibration.numpy()
    values = []
    for draw in draws:
        pixels, confidence, hits = sum(sums[image] for image in draw)
        values.append(sum(abs(c - h) for c, h in zip(confidence, hits, strict=True)) / pixels.sum())
    return values


def test_intervals() -> None:
    result = made_up()
    found = score_intervals(result, ["mIoU_I"])
    assert found.keys() == {"mIoU_I", "ECE"}
    assert found["ECE"] == pytest.approx((result.scores["ECE"], *np.percentile(drawn_ece(result), (2.5, 97.5))))
    iou = bootstrap_interval(result.counts, "mIoU_I", resamples=RESAMPLES)
    assert found["mIoU_I"] == (iou.score, iou.low, iou.high)


def test_differences() -> None:
    first, second = made_up(), made_up(seed=1, skill=3.0)
    found = score_differences(first, second, ["mIoU_I"])
    drawn = np.subtract(drawn_ece(second), drawn_ece(first))
    value = second.scores["ECE"] - first.scores["ECE"]
    assert found["ECE"] == pytest.approx((value, *np.percentile(drawn, (2.5, 97.5))))
    iou = paired_bootstrap(second.counts, first.counts, "mIoU_I", resamples=RESAMPLES)
    assert found["mIoU_I"] == (iou.difference, iou.low, iou.high)


def test_differences_of_several_seeds() -> None:
    first, second = [made_up(seed=seed) for seed in (0, 1)], [made_up(seed=seed, skill=3.0) for seed in (2, 3, 4)]
    found = ece_difference(*(torch.stack([each.calibration for each in runs]) for runs in (first, second)))
    drawn = [np.mean([drawn_ece(each) for each in runs], 0) for runs in (second, first)]
    value = np.mean([each.scores["ECE"] for each in second]) - np.mean([each.scores["ECE"] for each in first])
    assert found == pytest.approx((value, *np.percentile(drawn[0] - drawn[1], (2.5, 97.5))))

"""How far a score could be off by chance: percentile bootstrap over the images of a table of counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softjaccard.labels.checks import describe
from softjaccard.metrics.iou import Classes, Score, check_counts

#: Numbers held at a time.
_CHUNK = 2**21


@dataclass(frozen=True)
class Interval:
    """A score and its 95 % interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """The score of a minus that of b, its 95 % interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    counts: Tensor,
    score: str,
    *,
    classes: Classes = None,
    binary: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A score and its 95 % percentile bootstrap interval over images (Efron and Tibshirani 1993, chapter 13).

    Images are drawn with replacement, as many as there are; the score of each drawn set is taken as if it were the data
    set. Runs over the same images may be given together, one for each seed of training: their scores are averaged, and
    each draw takes the same images of all.

    Args:
        counts: tp, fp and fn of every image and class, ``(N, C, 3)``, or ``(S, N, C, 3)`` for S seeds.
        score: a name of :func:`fine_grained_iou`, such as mIoU_D.
        classes: as there.
        binary: as there.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        TypeError: ``counts`` are not integers.
        ValueError: they have another shape or no image, or another argument is unknown or out of range.

    Example:
        >>> counts = torch.tensor([[[8, 0, 2], [0, 2, 0]], [[5, 1, 0], [4, 0, 1]], [[2, 2, 2], [4, 2, 2]]])
        >>> interval = bootstrap_interval(counts, "mIoU_I", resamples=200)
        >>> interval.low < interval.score < interval.high
        True
    """
    runs = _runs("counts", counts)
    chosen = Score.parse(score, runs.shape[2], classes, binary)
    draws = draw_images(runs.shape[1], resamples, seed)
    scores = torch.cat([_of_runs(chosen, runs, drawn) for drawn in torch.split(draws, _draws_at_once(runs))])
    return Interval(float(_plain(chosen, runs)), *percentiles(scores))


def paired_bootstrap(
    counts_a: Tensor,
    counts_b: Tensor,
    score: str,
    *,
    ids_a: Tensor | None = None,
    ids_b: Tensor | None = None,
    classes: Classes = None,
    binary: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two runs over the same images: each draw takes the same images of both; see :func:`bootstrap_interval`.

    The p-value is twice the share of draws, the actual set counted as one of them, whose difference is not on the
    side of zero where most are, and at most 1.

    Args:
        counts_a: ``(N, C, 3)``, or ``(S, N, C, 3)`` for S seeds; a and b may have different numbers of seeds.
        counts_b: the same images.
        score: a name of :func:`fine_grained_iou`.
        ids_a: the images' ids, ``(N,)``, as from :meth:`FineGrainedIoU.table`; None if both are in the same order.
        ids_b: likewise.
        classes: as in :func:`fine_grained_iou`.
        binary: as there.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        TypeError: counts are not integers.
        ValueError: the images differ, or an argument is unknown or out of range.

    Example:
        >>> better = torch.tensor([[[8, 0, 1], [2, 1, 0]], [[5, 1, 0], [4, 0, 1]], [[3, 2, 1], [4, 1, 2]]])
        >>> worse = torch.tensor([[[7, 0, 2], [2, 2, 0]], [[4, 2, 1], [3, 1, 2]], [[2, 2, 2], [4, 2, 2]]])
        >>> paired_bootstrap(better, worse, "mIoU_D", resamples=99).p_value
        0.02
    """
    runs_a, runs_b = _runs("counts_a", counts_a), _runs("counts_b", counts_b)
    order_a, order_b = _matched(runs_a, runs_b, ids_a, ids_b)
    runs_a, runs_b = runs_a[:, order_a], runs_b[:, order_b]
    chosen = Score.parse(score, runs_a.shape[2], classes, binary)
    draws = draw_images(runs_a.shape[1], resamples, seed)
    differences = torch.cat(
        [
            _of_runs(chosen, runs_a, drawn) - _of_runs(chosen, runs_b, drawn)
            for drawn in torch.split(draws, _draws_at_once(runs_a))
        ]
    )
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return PairedDifference(
        float(_plain(chosen, runs_a) - _plain(chosen, runs_b)),
        *percentiles(differences),
        min(1.0, 2 * (tail + 1) / (resamples + 1)),
    )


def _runs(name: str, counts: Tensor) -> Tensor:
    """The tables of all seeds on the CPU, (S, N, C, 3)."""
    runs = counts.cpu() if counts.ndim == 4 else counts.cpu().unsqueeze(0)
    if not counts.numel():
        raise ValueError(f"{name}: expected at least one image, got {describe(counts)}")
    for run in runs:
        check_counts(name, run)
    return runs


def _matched(runs_a: Tensor, runs_b: Tensor, ids_a: Tensor | None, ids_b: Tensor | None) -> tuple[Tensor, Tensor]:
    """The orders of rows in which image follows image in both."""
    if runs_a.shape[1:] != runs_b.shape[1:]:
        raise ValueError(
            f"counts_b: expected the images and classes of counts_a, {tuple(runs_a.shape[1:])}, got "
            f"{tuple(runs_b.shape[1:])}"
        )
    if ids_a is None and ids_b is None:
        same = torch.arange(runs_a.shape[1])
        return same, same
    orders, ordered = [], []
    for name, ids in (("ids_a", ids_a), ("ids_b", ids_b)):
        if ids is None or ids.shape != (runs_a.shape[1],):
            raise ValueError(f"{name}: expected an id for each of {runs_a.shape[1]} images, got {describe(ids)}")
        values, order = ids.cpu().sort()
        if values[0] < 0 or bool((values[1:] == values[:-1]).any()):
            raise ValueError(f"{name}: expected each image's own id of at least 0; found repeated or missing ones")
        orders.append(order)
        ordered.append(values)
    if not torch.equal(*ordered):
        only = sorted(set(ordered[0].tolist()) ^ set(ordered[1].tolist()))
        raise ValueError(
            f"ids_b: expected the images of ids_a; {len(only)} are in one of the two only, such as {only[0]}"
        )
    return orders[0], orders[1]


def draw_images(images: int, resamples: int, seed: int) -> Tensor:
    """The images of each draw, (resamples, images)."""
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    return torch.randint(images, (resamples, images), generator=torch.Generator().manual_seed(seed))


def _draws_at_once(runs: Tensor) -> int:
    return max(1, _CHUNK // runs[0, ..., 0].numel())


def _plain(score: Score, runs: Tensor) -> Tensor:
    return torch.stack([score.of(run) for run in runs]).mean()


def _of_runs(score: Score, runs: Tensor, drawn: Tensor) -> Tensor:
    """The score of each draw, averaged over runs, (draws,)."""
    return torch.stack([_of_draws(score, run, drawn) for run in runs]).mean(0)


def _of_draws(score: Score, counts: Tensor, drawn: Tensor) -> Tensor:
    """The score of each draw, (draws,)."""
    if score.per == "dataset":
        # How often each image was drawn, times its counts; float64 holds the sums exactly.
        times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
        totals = (times @ counts.flatten(1).double()).view(-1, *counts.shape[1:])
        values, active = score.values(totals.unsqueeze(1))
    else:
        values, active = (of_images[drawn] for of_images in score.terms(counts))
    return torch.vmap(score.reduce)(values, active)


def percentiles(scores: Tensor) -> tuple[float, float]:
    """The ends of the 95 % interval of the scores of draws, float64 (draws,)."""
    low, high = scores.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high

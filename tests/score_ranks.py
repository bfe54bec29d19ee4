"""What two processes compute in the tests of the scores.

A module of its own because the processes import it; pytest's names for test modules mean nothing to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softjaccard import RaterLabel
from softjaccard.metrics import BoundaryIoU, CalibrationError, FineGrainedIoU, SoftScores

Batches = tuple[tuple[int, ...], ...]
#: The images of each process, batch by batch, and whether they carry ids.
SHARES: tuple[tuple[tuple[Batches, Batches], bool], ...] = (
    ((((0,), (1, 2, 3)), ((4, 5), (6,))), False),
    ((((0, 1, 2, 3, 4, 5, 6),), ()), False),
    ((((6, 0), (1, 2)), ((3, 4, 5), (6, 0), (3, 3))), True),  # repeated in one process and in both
    (((), ((0, 1, 2, 2), (3, 4, 5, 6))), True),
)


def images() -> tuple[Tensor, Tensor]:
    """Predicted ids and labels of seven images; the sixth has nothing that counts."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(-1, 4, (7, 13, 11), generator=generator)
    label[5] = -1
    noise = torch.randint(4, label.shape, generator=generator)
    ids = torch.where(torch.rand(label.shape, generator=generator) < 0.6, label.clamp(min=0), noise)
    return ids, torch.where(label == -1, -100, label)


def found(metrics: Sequence[FineGrainedIoU | BoundaryIoU], batches: Batches, with_ids: bool) -> list[Any]:
    """Tables and scores of these images."""
    ids, label = images()
    results = []
    for metric in metrics:
        for batch in batches:
            places = list(batch)
            metric.update(ids[places], label[places], image_ids=[10 * i for i in batch] if with_ids else None)
        with metric.sync_context():
            table = metric.table()
        results.append({"table": table, "scores": metric.compute(), "own": metric.table()})
    return results


def make_metrics() -> tuple[FineGrainedIoU, BoundaryIoU]:
    return FineGrainedIoU(4), BoundaryIoU(4, width=1)


def found_by_rank(rank: int, ranks: int) -> list[list[Any]]:
    """What a process finds in each case."""
    return [found(make_metrics(), shares[rank], with_ids) for shares, with_ids in SHARES]


def soft_scores_of(batches: Batches, with_ids: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Scores and ids of these images, with two annotators' votes."""
    ids, label = images()
    probabilities = torch.rand(7, 4, 13, 11, generator=torch.Generator().manual_seed(1)).softmax(1)
    votes = torch.stack((torch.where(label == -100, -100, ids), label), 1)
    metric = SoftScores(4)
    for batch in batches:
        places, named = list(batch), [10 * i for i in batch]
        metric.update(probabilities[places], RaterLabel(votes[places]), image_ids=named if with_ids else None)
    with metric.sync_context():
        _, found_ids = metric.statistics()
    return metric.compute(), found_ids


def soft_by_rank(rank: int, ranks: int) -> list[tuple[dict[str, Tensor], Tensor]]:
    """What a process finds in each case."""
    return [soft_scores_of(shares[rank], with_ids) for shares, with_ids in SHARES]


# --- Calibration ------------------------------------------------------------------------------------------------------

#: The images of each process, batch by batch; in the second case one process has none.
CALIBRATION_SHARES: tuple[tuple[tuple[slice, ...], ...], ...] = (
    ((slice(0, 1), slice(1, 5)), (slice(5, 7),)),
    ((slice(0, 7),), ()),
)


def calibration_images() -> tuple[Tensor, Tensor]:
    """Logits (7, 4, 33, 29) and label; enough pixels that float32 sums would not agree to 1e-12."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(-1, 4, (7, 33, 29), generator=generator)
    return 2 * torch.randn(7, 4, 33, 29, generator=generator), torch.where(label == -1, -100, label)


def calibration_of(batches: Sequence[slice]) -> dict[str, Any]:
    """Scores and reliability of these images."""
    logits, label = calibration_images()
    metric = CalibrationError(4, from_logits=True, per_image=True, boundary_kernel_size=3)
    for batch in batches:
        metric.update(logits[batch], label[batch])
    with metric.sync_context():
        reliability = metric.reliability()
    return {"scores": metric.compute(), "reliability": reliability}


def calibration_by_rank(rank: int, ranks: int) -> list[dict[str, Any]]:
    """What a process finds in each case."""
    return [calibration_of(shares[rank]) for shares in CALIBRATION_SHARES]

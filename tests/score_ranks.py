"""What two processes of a gloo group compute in the tests of the scores.

A module of its own because the processes import it; pytest's names for test modules mean nothing to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from softjaccard.metrics import BoundaryIoU, FineGrainedIoU

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


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    results = [found(make_metrics(), shares[rank], with_ids) for shares, with_ids in SHARES]
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run(folder: Path) -> list[list[list[Any]]]:
    """What each process found in each case."""
    mp.spawn(_work, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

"""What two processes of a gloo group compute in the test of the calibration scores.

A module of its own because the processes import it; pytest's names for test modules mean nothing to them.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from softjaccard.metrics import CalibrationError

#: The images of each process, batch by batch; in the second case one process has none.
SHARES: tuple[tuple[tuple[slice, ...], ...], ...] = (
    ((slice(0, 1), slice(1, 5)), (slice(5, 7),)),
    ((slice(0, 7),), ()),
)


def images() -> tuple[Tensor, Tensor]:
    """Logits (7, 4, 33, 29) and label; enough pixels that float32 sums would not agree to 1e-12."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(-1, 4, (7, 33, 29), generator=generator)
    return 2 * torch.randn(7, 4, 33, 29, generator=generator), torch.where(label == -1, -100, label)


def make_metric() -> CalibrationError:
    return CalibrationError(4, from_logits=True, per_image=True, boundary_kernel_size=3)


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    logits, label = images()
    found = []
    for share in SHARES:
        metric = make_metric()
        for batch in share[rank]:
            metric.update(logits[batch], label[batch])
        with metric.sync_context():
            reliability = metric.reliability()
        found.append({"scores": metric.compute(), "reliability": reliability})
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def run(folder: Path) -> list[list[dict[str, Tensor | dict[str, Tensor]]]]:
    """What each process found in each case."""
    mp.spawn(_work, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

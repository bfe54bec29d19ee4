"""The metrics' updates, beside plain torch operations on the same pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import Step, median_seconds, peak_bytes

NUM_CLASSES = 19
IGNORED = 255


class Updates(NamedTuple):
    """What is timed."""

    update: Step
    others: Mapping[str, Step]
    """The operations it is compared with."""
    input_bytes: int


def _class_maps(size: tuple[int, int], block: int, ignored: float) -> tuple[Tensor, Tensor]:
    """Predicted ids and label of one image of square regions; a fifth of the pixels is predicted at random."""
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(NUM_CLASSES, (1, size[0] // block, size[1] // block), generator=generator)
    label = regions.repeat_interleave(block, 1).repeat_interleave(block, 2)
    wrong = torch.rand(label.shape, generator=generator) < 0.2
    ids = torch.where(wrong, torch.randint(NUM_CLASSES, label.shape, generator=generator), label)
    return ids, label.masked_fill(torch.rand(label.shape, generator=generator) < ignored, IGNORED)


def _fine_grained_iou(size: tuple[int, int], device: torch.device, block: int, ignored: float) -> Updates:
    from softjaccard.metrics import FineGrainedIoU

    ids, label = (tensor.to(device) for tensor in _class_maps(size, block, ignored))
    metric = FineGrainedIoU(NUM_CLASSES, ignore_index=IGNORED).to(device)
    kept = label != IGNORED
    rows = torch.where(kept, label, NUM_CLASSES).flatten()
    cells = torch.where(kept, label * NUM_CLASSES + ids, NUM_CLASSES**2).flatten()

    def update() -> None:
        metric.reset()
        metric.update(ids, label, image_ids=[0])

    def usual() -> Tensor:
        """The index of the cell, made from the maps as they come, and its bincount; without checks of the values."""
        counted = label != IGNORED
        return torch.bincount(label[counted] * NUM_CLASSES + ids[counted], minlength=NUM_CLASSES**2)

    others = {
        "bincount of label x prediction": lambda: torch.bincount(cells, minlength=NUM_CLASSES**2 + 1),
        "bincount of label": lambda: torch.bincount(rows, minlength=NUM_CLASSES + 1),
        "index of label x prediction and its bincount": usual,
    }
    return Updates(update, others, ids.nbytes + label.nbytes)


def _calibration(size: tuple[int, int], device: torch.device, scale: float, **options: Any) -> Updates:
    from softjaccard.metrics import CalibrationError

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((1, NUM_CLASSES, *size), generator=generator).mul_(scale).to(device)
    label = torch.randint(NUM_CLASSES, (1, *size), generator=generator)
    label.flatten()[::10] = IGNORED
    label = label.to(device)
    metric = CalibrationError(NUM_CLASSES, ignore_index=IGNORED, from_logits=True, **options).to(device)

    def update() -> None:
        metric.reset()
        metric.update(logits, label)

    others = {
        "softmax, argmax": lambda: logits.softmax(1).argmax(1),
        "softmax, max": lambda: logits.softmax(1).max(1),  # torch's max is faster than its argmax
    }
    return Updates(update, others, logits.nbytes + label.nbytes)


_MAKE: dict[str, Callable[[tuple[int, int], torch.device], Updates]] = {
    "FineGrainedIoU, regions of 32 x 32": lambda size, device: _fine_grained_iou(size, device, 32, 0.1),
    "FineGrainedIoU, pixels at random": lambda size, device: _fine_grained_iou(size, device, 1, 0.0),
    "CalibrationError, unsure network": lambda size, device: _calibration(size, device, 1.0),
    "CalibrationError, sure network": lambda size, device: _calibration(size, device, 5.0),
    "CalibrationError, all options": lambda size, device: _calibration(
        size, device, 5.0, per_image=True, boundary_kernel_size=3
    ),
}
METRICS = tuple(_MAKE)


@dataclass(frozen=True)
class MetricCase:
    """One update of a metric with one image."""

    metric: str
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """What ``--cases`` is matched against."""
        return f"metrics/{self.metric}/{'x'.join(map(str, self.size))}"

    def measure(self, device: torch.device, budget: float) -> dict[str, object]:
        """Time and memory of the update, beside the other operations."""
        update, others, input_bytes = _MAKE[self.metric](self.size, device)
        steps = {"update": update, **others}
        for step in steps.values():
            step()  # imports, thread pools
        peak = peak_bytes(update, device)
        times = median_seconds(steps, device, budget)
        return {
            "seconds": times["update"],
            "other_seconds": {name: times[name] for name in others},
            "time_ratio": {name: times["update"] / times[name] for name in others},
            "peak_bytes": peak,
            "peak_ratio": None if peak is None else peak / input_bytes,
        }

"""Measure one loss in this process: time and memory of forward and backward, beside torch's cross-entropy.

Prints one JSON object. Run by ``benchmarks/run.py``; by hand: ``python benchmarks/case.py chunked 2 19 512 1024``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import softjaccard

Loss = Callable[[Tensor, Tensor], Tensor]
REPETITIONS = 5


def _jml(**options: object) -> Loss:
    return softjaccard.CompoundLoss(softjaccard.JaccardLoss(**options))


def _smoothed(loss: Loss) -> Loss:
    return lambda logits, label: loss(logits, softjaccard.SmoothedLabel(label, 0.5, softjaccard.boundary(label)))


def _smp(name: str) -> Loss:
    from segmentation_models_pytorch import losses

    return getattr(losses, name)(mode="multiclass")


CASES: dict[str, tuple[str, Callable[[], Loss]]] = {
    "cross-entropy": ("torch `F.cross_entropy`", lambda: F.cross_entropy),
    "chunked": ("0.25 CE + 0.75 JML, `chunked`", lambda: _jml(backend="chunked")),
    "chunked-error-scaled": (
        'the same, `gradient="error_scaled"`',
        lambda: _jml(backend="chunked", gradient="error_scaled"),
    ),
    "chunked-smoothed": ("the same, boundary-smoothed label", lambda: _smoothed(_jml(backend="chunked"))),
    "reference": ("0.25 CE + 0.75 JML, `reference`", lambda: _jml(backend="reference")),
    "smp-jaccard": ("segmentation_models.pytorch `JaccardLoss`", lambda: _smp("JaccardLoss")),
    "smp-dice": ("segmentation_models.pytorch `DiceLoss`", lambda: _smp("DiceLoss")),
}


def _inputs(shape: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)


def _step(loss: Loss, logits: Tensor, label: Tensor) -> None:
    logits.grad = None
    loss(logits, label).backward()


def _seconds(loss: Loss, logits: Tensor, label: Tensor) -> float:
    start = time.perf_counter()
    _step(loss, logits, label)
    return time.perf_counter() - start


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is resident now, VmHWM its high-water mark."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _peak_bytes(loss: Loss, logits: Tensor, label: Tensor) -> int:
    """The high-water mark of resident memory during one step, above what is resident before it."""
    logits.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    before = _status("VmRSS")
    _step(loss, logits, label)
    return _status("VmHWM") - before


def measure(name: str, shape: list[int]) -> dict[str, object]:
    """Time and memory of one case at one shape."""
    loss = CASES[name][1]()
    _step(loss, *_inputs([1, shape[1], 8, 8]))  # imports, operators, thread pools
    logits, label = _inputs(shape)
    peaks = [_peak_bytes(loss, logits, label) for _ in range(REPETITIONS)] if sys.platform == "linux" else [-1]
    # Alternating, so that a busy machine slows both down alike.
    pairs = [(_seconds(loss, logits, label), _seconds(F.cross_entropy, logits, label)) for _ in range(REPETITIONS)]
    mine, cross_entropy = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "case": name,
        "shape": shape,
        "seconds": mine,
        "cross_entropy_seconds": cross_entropy,
        "time_ratio": mine / cross_entropy,
        "peak_ratio": statistics.median(peaks) / (logits.numel() * logits.element_size()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("shape", type=int, nargs="+", help="B C spatial...")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.case, arguments.shape)))

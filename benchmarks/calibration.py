"""Time and memory of ``CalibrationError.update`` on the CPU, beside one softmax and argmax over the same logits.

One image, 19 classes, 1024 x 2048 pixels, float32 logits: normal ones, as of a network that knows little, and the same
times 5, as of one that is sure; every tenth pixel is ignored. The calls are timed in turn, medians of 5 in one process;
memory is the peak of resident memory above the inputs, divided by the size of the logits. Prints one JSON object for
each kind of logits. By hand: ``python benchmarks/calibration.py``; ``OMP_NUM_THREADS`` sets the number of threads.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from case import _status
from torch import Tensor

from softjaccard.metrics import CalibrationError

SHAPE = (1, 19, 1024, 2048)
IGNORED = 255
REPETITIONS = 5


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak_bytes(call: Callable[[], object]) -> int:
    """The high-water mark of resident memory during a call, above what is resident before it."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def calls(logits: Tensor, label: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed: the metric, and what it is measured by."""

    def update(**options: object) -> Callable[[], object]:
        metric = CalibrationError(logits.shape[1], ignore_index=IGNORED, from_logits=True, **options)
        return lambda: metric.update(logits, label)

    return {
        "update": update(),
        "update, all options": update(per_image=True, boundary_kernel_size=3),
        "softmax, argmax": lambda: logits.softmax(1).argmax(1),
        "softmax, max": lambda: logits.softmax(1).max(1),  # torch's max is faster than its argmax
    }


def measure(scale: float) -> dict[str, object]:
    """Times and memory with normal logits times ``scale``."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SHAPE, generator=generator).mul_(scale)
    label = torch.randint(SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=generator)
    label.flatten()[::10] = IGNORED
    for call in calls(logits[..., :8, :8], label[..., :8, :8]).values():
        call()  # imports, operators, thread pools
    timed = calls(logits, label)
    peaks = {
        name: _peak_bytes(call) / (logits.numel() * 4) if sys.platform == "linux" else -1
        for name, call in timed.items()
    }
    rounds = [[_seconds(call) for call in timed.values()] for _ in range(REPETITIONS)]
    seconds = dict(zip(timed, map(statistics.median, zip(*rounds, strict=True)), strict=True))
    return {
        "shape": SHAPE,
        "scale": scale,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "time_ratio": {name: value / seconds["softmax, argmax"] for name, value in seconds.items()},
        "peak_ratio": peaks,
    }


if __name__ == "__main__":
    for scale in (1.0, 5.0):
        print(json.dumps(measure(scale)), flush=True)

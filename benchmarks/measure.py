"""Time and peak memory of a step, on the CPU and on CUDA devices.

A step is a function without arguments that leaves nothing behind: what it allocates is free again when it returns.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

Step = Callable[[], object]
_FEWEST, _MOST = 3, 31
_PEAKS = 3
#: Larger than the second-level cache of any GPU so far.
_FLUSH_BYTES = 2**28
#: In cycles of a GPU some 5 ms, in which the host can queue a step.
_SLEEP = 10_000_000


@lru_cache(maxsize=1)
def _flush(device: torch.device) -> Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)


def seconds(step: Step, device: torch.device) -> float:
    """The time of one step.

    On a CUDA device it is the device's own time, with cold caches: the host queues the step's kernels while the device
    sleeps, as in training it runs ahead, so that their launches are not what is measured.
    """
    if device.type != "cuda":
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flush(device).zero_()
    torch.cuda._sleep(_SLEEP)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1000


def median_seconds(steps: Mapping[str, Step], device: torch.device, budget: float) -> dict[str, float]:
    """The median time of each step, by its name.

    The steps take turns, so that a busy machine slows them down alike, until ``budget`` seconds are over. Each has run
    at least once before.
    """
    rounds: list[list[float]] = []
    end = time.perf_counter() + budget
    while len(rounds) < _FEWEST or (len(rounds) < _MOST and time.perf_counter() < end):
        rounds.append([seconds(step, device) for step in steps.values()])
    return dict(zip(steps, map(statistics.median, zip(*rounds, strict=True)), strict=True))


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """The most memory during a step, above what is in use before it; a median. None where it can't be measured.

    On a CUDA device it is what torch's allocator hands out, on Linux the resident memory of the process, all threads
    together.
    """
    if device.type == "cuda":
        peaks = [_peak_allocated(step, device) for _ in range(_PEAKS)]
    elif sys.platform == "linux":
        peaks = [_peak_resident(step) for _ in range(_PEAKS)]
    else:
        return None
    return int(statistics.median(peaks))


def _peak_allocated(step: Step, device: torch.device) -> int:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_resident(step: Step) -> int:
    gc.collect()
    # What earlier steps freed, in the arenas of all threads, goes back to the system; otherwise this step would get it
    # again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    before = _status_bytes("VmRSS")
    step()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    """A line of /proc/self/status: VmRSS is resident now, VmHWM its high-water mark."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

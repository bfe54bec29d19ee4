"""Threads that each work on parts of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

#: More would wait for Python's lock, and each needs memory for a part.
MOST_THREADS = 8

Part = TypeVar("Part")
Scratch = TypeVar("Scratch")
Result = TypeVar("Result")


class _OneThreadEach:
    """While entered, torch's operators use one thread each; several callers may be inside at a time."""

    def __init__(self) -> None:
        self._lock, self._inside, self._threads = threading.Lock(), 0, 1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._threads = torch.get_num_threads()
                torch.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.set_num_threads(self._threads)


_one_thread_each = _OneThreadEach()


def in_threads(
    work: Callable[[Part, Scratch], Result], parts: Sequence[Part], scratch: Callable[[], Scratch], device: torch.device
) -> Iterator[Result]:
    """The results of all parts, in order; each thread makes one ``scratch`` for itself and hands it to all its parts.

    On the CPU each thread works on parts of its own, without gradients. Threads that shared every small operator of a
    part would wait for each other some thousand times, which takes milliseconds each where a neighbour keeps a core
    busy. On other devices there is one thread.
    """
    threads = min(torch.get_num_threads(), MOST_THREADS, len(parts)) if device.type == "cpu" else 1
    own = threading.local()

    def in_thread(part: Part) -> Result:
        if not hasattr(own, "scratch"):
            own.scratch = scratch()
        with torch.no_grad():  # a new thread starts with gradients on
            return work(part, own.scratch)

    if threads <= 1:
        yield from map(in_thread, parts)
        return
    with _one_thread_each, ThreadPoolExecutor(threads) as pool:
        yield from pool.map(in_thread, parts)

"""Threads that each work on parts of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

#: More would wait for Python's lock, and each needs memory for a part.
MOST_THREADS = 8

Part = TypeVar("Part")
Scratch = TypeVar("Scratch")
Result = TypeVar("Result")


_lock, _inside = threading.Lock(), list[int]()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Meanwhile torch's operators use one thread each where they are called from this thread.

    The number belongs to each thread; one that is new to torch takes the number set last, wherever.
    """
    with _lock:
        own = torch.get_num_threads()
        if own == 1 and _inside:  # new to torch, it has just taken the 1 of the others in here
            own = _inside[0]
        _inside.append(own)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside.remove(own)
            torch.set_num_threads(own)


def in_threads(
    work: Callable[[Part, Scratch], Result], parts: Sequence[Part], scratch: Callable[[], Scratch], device: torch.device
) -> Iterator[Result]:
    """The results of all parts, in order; each thread makes one ``scratch`` for itself and hands it to all its parts.

    On the CPU each thread works on parts of its own, without gradients. Threads that shared every small operator of a
    part would wait for each other some thousand times, which takes milliseconds each where a neighbour keeps a core
    busy. On other devices there is one thread.
    """
    threads = min(torch.get_num_threads(), MOST_THREADS, len(parts)) if device.type == "cpu" else 1
    own, inference = threading.local(), torch.is_inference_mode_enabled()

    def in_thread(part: Part) -> Result:
        if not hasattr(own, "scratch"):
            own.scratch = scratch()
        with torch.inference_mode(inference), torch.no_grad():  # a new thread starts with neither
            return work(part, own.scratch)

    if threads <= 1:
        yield from map(in_thread, parts)
        return
    with _one_thread_each(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(in_thread, parts)

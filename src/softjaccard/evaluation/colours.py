"""Colours for classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softjaccard.errors import InputError

_LEVELS = 16  # of each channel


def distinct_colours(count: int) -> NDArray[np.uint8]:
    """Return colours (count, 3) of which each is as far, in RGB, from those before it as can be; the first is black.

    The colour of a class does not depend on how many follow it.

    Raises:
        InputError: If more than 4096 are wanted.

    Example:
        >>> distinct_colours(4).tolist()
        [[0, 0, 0], [255, 255, 255], [0, 119, 255], [119, 255, 0]]
    """
    if count > _LEVELS**3:
        raise InputError(f"There are {count} classes, but colours for {_LEVELS**3} at most.")
    levels = np.linspace(0, 255, _LEVELS, dtype=np.int64)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    chosen = candidates[:1]
    distance = np.full(len(candidates), np.iinfo(np.int64).max)
    while len(chosen) < count:
        distance = np.minimum(distance, ((candidates - chosen[-1]) ** 2).sum(1))
        chosen = np.vstack([chosen, candidates[distance.argmax()]])
    return chosen[:count].astype(np.uint8)

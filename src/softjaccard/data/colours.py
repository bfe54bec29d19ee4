"""Colours for classes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from softjaccard.errors import InputError

Colours: TypeAlias = tuple[tuple[int, int, int], ...]

PALETTE: Colours = (
    (227, 227, 227), (230, 159, 0), (0, 158, 115), (0, 114, 178), (204, 121, 167), (86, 180, 233), (213, 94, 0),
    (240, 228, 66),
)  # fmt: skip
"""Ground, then the colours of Okabe and Ito, which the colour-blind can tell apart."""

UNLABELLED = (0, 0, 0)
"""The colour of pixels without a label."""

_LEVELS = 16  # of each channel


def distinct_colours(count: int) -> Colours:
    """Return colours: those of `PALETTE`, then ones as far, in RGB, from all before them and from black as can be.

    The colour of a class does not depend on how many follow it.

    Raises:
        InputError: If more than 4096 are wanted.

    Example:
        >>> distinct_colours(9)[-2:]
        ((240, 228, 66), (119, 0, 255))
    """
    if count > _LEVELS**3:
        raise InputError(f"There are {count} classes, but colours for {_LEVELS**3} at most.")
    levels = np.linspace(0, 255, _LEVELS, dtype=np.int64)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    chosen = list(PALETTE[:count])
    distance = np.full(len(candidates), np.iinfo(np.int64).max)
    for colour in (UNLABELLED, *PALETTE):
        distance = np.minimum(distance, ((candidates - colour) ** 2).sum(1))
    while len(chosen) < count:
        chosen.append(tuple(candidates[distance.argmax()].tolist()))
        distance = np.minimum(distance, ((candidates - chosen[-1]) ** 2).sum(1))
    return tuple(chosen)


def hex_colour(colour: tuple[int, int, int]) -> str:
    """Write a colour as CSS does."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def class_colours(dataset: Any) -> Colours:
    """Return a data set's own `colours` of its classes, or else colours that can be told apart.

    Example:
        >>> from softjaccard.data.scenes import Scenes
        >>> class_colours(Scenes)[:2]
        ((227, 227, 227), (230, 159, 0))
    """
    own = getattr(dataset, "colours", None)
    return distinct_colours(dataset.num_classes) if own is None else tuple((int(r), int(g), int(b)) for r, g, b in own)

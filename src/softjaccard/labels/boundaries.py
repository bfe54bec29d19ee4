"""Which pixels lie at a boundary between classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from softjaccard.labels.checks import describe, is_integer

#: The types of ids that are compared as they are; the others as int32, which is faster than int64.
_NARROW = (torch.uint8, torch.int8, torch.int16)


def local_extremum(values: Tensor, kernel_size: int, larger: Callable[..., Tensor] = torch.maximum) -> Tensor:
    """Maximum (or ``torch.minimum``) over a cube of ``kernel_size`` pixels a side, as far as it lies in the image."""
    for axis in range(1, values.ndim):
        length = values.shape[axis] - 1
        for _ in range(min(kernel_size // 2, length)):
            before, after = values.narrow(axis, 0, length), values.narrow(axis, 1, length)
            pairs = larger(before, after)
            # A pixel is in the pair with the one before it and in that with the one after it.
            values = torch.cat((pairs.narrow(axis, 0, 1), pairs, pairs.narrow(axis, length - 1, 1)), axis)
            values = larger(values.narrow(axis, 0, length + 1), values.narrow(axis, 1, length + 1))
    return values


def expect_window(index: Tensor, kernel_size: int, least: int = 1) -> None:
    """Check class ids (B, *spatial), and the side of a window around each."""
    if not is_integer(index):
        raise TypeError(f"index: expected integer class ids (B, *spatial), got {describe(index)}")
    if index.ndim < 2:
        raise ValueError(f"index: expected (B, *spatial) with at least one spatial dimension, got {describe(index)}")
    if not isinstance(kernel_size, int) or kernel_size < least or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number of pixels of at least {least}, got {kernel_size}")


def boundary(index: Tensor, kernel_size: int = 3, ignore_index: int = -100) -> Tensor:
    """Boundary map of a hard label.

    A pixel is a boundary if any class's one-hot map differs from its ``kernel_size`` x ``kernel_size`` minimum filter,
    that is, if its window holds more than one class. A pixel with an ignored pixel in its window is not. The window is
    cut off at the image's border, which therefore is no boundary. Definition: boundary label smoothing of Wang, Ning
    and Blaschko, Jaccard Metric Losses, arXiv 2302.05666.

    Args:
        index: integer class ids ``(B, *spatial)``, any number of spatial dimensions; every axis but the first is taken
            for a spatial one.
        kernel_size: side of the window in pixels, odd; 3 marks a band two pixels wide, one on each side of an edge.
        ignore_index: the id of pixels that do not count.

    Returns:
        Boolean tensor ``(B, *spatial)``.

    Raises:
        TypeError: ``index`` is not an integer tensor.
        ValueError: ``kernel_size`` is not odd and positive, or ``index`` has no spatial dimension.

    Example:
        >>> boundary(torch.tensor([[0, 0, 0, 1, 1, 1]]))
        tensor([[False, False,  True,  True, False, False]])
    """
    expect_window(index, kernel_size)
    if index.numel() == 0:
        return torch.zeros_like(index, dtype=torch.bool)
    # Widened before the comparison: 156 in uint8 is not -100.
    near_ignored = local_extremum(index.to(torch.int64) == ignore_index, kernel_size)
    ids = index if index.dtype in _NARROW else index.to(torch.int32)
    mixed = local_extremum(ids, kernel_size) != local_extremum(ids, kernel_size, torch.minimum)
    return mixed & ~near_ignored

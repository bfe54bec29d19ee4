"""Which pixels lie at a boundary between classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from softjaccard.labels.checks import describe, is_integer


def local_maximum(values: Tensor, kernel_size: int) -> Tensor:
    """Maximum over a cube of ``kernel_size`` pixels a side, one axis after the other; outside the image is -inf."""
    for axis in range(1, values.ndim):
        moved = values.movedim(axis, -1)
        rows = moved.reshape(-1, 1, moved.shape[-1])
        pooled = F.max_pool1d(rows, kernel_size, stride=1, padding=kernel_size // 2)
        values = pooled.reshape(moved.shape).movedim(-1, axis)
    return values


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
    if not is_integer(index):
        raise TypeError(f"index: expected integer class ids (B, *spatial), got {describe(index)}")
    if index.ndim < 2:
        raise ValueError(f"index: expected (B, *spatial) with at least one spatial dimension, got {describe(index)}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number of pixels such as 3 or 5, got {kernel_size}")
    if index.numel() == 0:
        return torch.zeros_like(index, dtype=torch.bool)
    wide = index.to(torch.int64)
    # float32 holds class ids exactly up to 2**24, and max-pooling needs floats.
    values = wide.to(torch.float32)
    near_ignored = local_maximum((wide == ignore_index).to(torch.float32), kernel_size) > 0
    mixed = local_maximum(values, kernel_size) != -local_maximum(-values, kernel_size)
    return mixed & ~near_ignored

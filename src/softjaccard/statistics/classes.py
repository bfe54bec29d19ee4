"""The class of each pixel, from logits of a lower resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softjaccard.statistics.pixels import Options, sum_dtype
from softjaccard.statistics.region import expect_logits, expect_size
from softjaccard.statistics.tiles import Tile, Tiles, Workspace


def class_map(logits: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """The class with the largest logit at each pixel of a higher resolution, without the logits there.

    Like ``F.interpolate(logits, size, mode="bilinear").argmax(1)``, in the memory of the result and a few tiles. NaN
    counts as the largest, as in torch.

    Args:
        logits: ``(B, C, h, w)``.
        size: ``(H, W)``, at least ``(h, w)``.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        int64 ``(B, H, W)``.

    Raises:
        TypeError: ``logits`` is no float tensor.
        ValueError: ``logits`` is empty or has not two spatial dimensions, or ``size`` is smaller than theirs.

    Example:
        >>> class_map(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), (1, 4))
        tensor([[[0, 0, 1, 1]]])
    """
    plan, shape = _plan(logits, size, align_corners)
    result = torch.empty(shape, dtype=torch.int64, device=logits.device)

    def work(tile: Tile, workspace: Workspace) -> None:
        result[tile] = plan.in_place(plan.values(tile, workspace).argmax(1), tile)

    for _ in plan.for_each(work):
        pass
    return result


def confidence_map(logits: Tensor, size: Sequence[int], *, align_corners: bool = False) -> tuple[Tensor, Tensor]:
    """The most probable class at each pixel of a higher resolution and its probability, without the logits there.

    Like ``F.interpolate(logits, size, mode="bilinear").softmax(1).max(1)``, in the memory of the results and a few
    tiles.

    Args:
        logits: ``(B, C, h, w)``.
        size: ``(H, W)``, at least ``(h, w)``.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        The classes, int64 ``(B, H, W)``, and the probabilities, float32, or float64 for float64 logits.

    Raises:
        TypeError: ``logits`` is no float tensor.
        ValueError: ``logits`` is empty or has not two spatial dimensions, or ``size`` is smaller than theirs.

    Example:
        >>> confidence_map(torch.tensor([[[[9.0, 0.0]], [[0.0, 9.0]]]]), (1, 2))
        (tensor([[[0, 1]]]), tensor([[[0.9999, 0.9999]]]))
    """
    plan, shape = _plan(logits, size, align_corners)
    classes = torch.empty(shape, dtype=torch.int64, device=logits.device)
    confidence = torch.empty(shape, dtype=sum_dtype(logits.dtype), device=logits.device)

    def work(tile: Tile, workspace: Workspace) -> None:
        peak, index = plan.values(tile, workspace).softmax(1).max(1)
        classes[tile], confidence[tile] = plan.in_place(index, tile), plan.in_place(peak, tile)

    for _ in plan.for_each(work):
        pass
    return classes, confidence


def _plan(logits: Tensor, size: Sequence[int], align_corners: bool) -> tuple[Tiles, tuple[int, int, int]]:
    """The tiles of the interpolated logits, and the shape (B, H, W) of a map of them."""
    expect_logits(logits, None)
    height, width = expect_size(size, logits=logits)
    plan = Tiles(logits.detach(), Options(size=(height, width), align_corners=align_corners))
    return plan, (len(logits), height, width)

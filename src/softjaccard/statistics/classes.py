"""The class of each pixel, from logits of a lower resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softjaccard.statistics.pixels import Options
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
    expect_logits(logits, None)
    height, width = expect_size(size, logits=logits)
    plan = Tiles(logits.detach(), Options(size=(height, width), align_corners=align_corners))
    result = torch.empty((len(logits), height, width), dtype=torch.int64, device=logits.device)

    def work(tile: Tile, workspace: Workspace) -> None:
        result[tile] = plan.in_place(plan.values(tile, workspace).argmax(1), tile)

    for _ in plan.for_each(work):
        pass
    return result

"""What the metrics accept, checked. Values are always looked at: counting waits for the device in any case."""

from __future__ import annotations

import torch
from torch import Tensor

from softjaccard.labels.checks import describe, is_integer, tolerance


def check_num_classes(num_classes: int) -> None:
    """Raise a ValueError unless there are at least two classes."""
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2 (a binary mask has 2), got {num_classes}")


def kept_pixels(label: Tensor, spatial: tuple[int, ...], mask: Tensor | None, ignore_index: int) -> Tensor:
    """Boolean (B, *spatial): pixels inside the mask that a hard ``label`` does not ignore; a soft one ignores none."""
    if is_integer(label):
        kept = label.to(torch.int64) != ignore_index  # widened first: 156 in uint8 is not -100
    else:
        kept = torch.ones(spatial, dtype=torch.bool, device=label.device)
    if mask is None:
        return kept
    check_mask(mask, spatial)
    return kept & mask


def check_mask(mask: Tensor, spatial: tuple[int, ...]) -> None:
    """Raise a TypeError or ValueError unless the mask is boolean (B, *spatial)."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected booleans of shape (B, *spatial) = {spatial}, got {describe(mask)}")
    if tuple(mask.shape) != spatial:
        raise ValueError(f"mask: expected shape (B, *spatial) = {spatial}, got {describe(mask)}")


def at_least_single(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_ids(name: str, ids: Tensor, kept: Tensor, num_classes: int) -> None:
    """Raise a ValueError if a kept pixel's id is not a class."""
    ids = ids.to(torch.int64)
    low, high = ids.aminmax() if ids.numel() else (torch.tensor(0),) * 2
    if low >= 0 and high < num_classes:
        return
    wrong = ids[kept & ((ids < 0) | (ids >= num_classes))]
    if wrong.numel():
        values = torch.unique(wrong).tolist()
        raise ValueError(
            f"{name}: expected class ids from 0 to {num_classes - 1}, found {values[:5]} at {wrong.numel()} pixels. "
            f"If {values[-1]} marks pixels to leave out, pass ignore_index={values[-1]}"
        )


def check_distribution(name: str, values: Tensor, kept: Tensor, hint: str) -> None:
    """Raise a ValueError if a kept pixel's (B, C, *spatial) values are not probabilities that sum to 1."""
    slack = tolerance(values.dtype)
    wide = at_least_single(values)
    if bool((wide.sum(1).isnan() & kept).any()):
        raise ValueError(f"{name}: expected numbers, found NaN; the network's output may have diverged")
    valid = ((wide.sum(1) - 1).abs() <= slack) & (wide.amin(1) >= -slack)
    if not bool((valid | ~kept).all()):
        raise ValueError(f"{name}: expected probabilities that sum to 1 over the classes at every pixel; {hint}")

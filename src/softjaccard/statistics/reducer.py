"""How scores of classes and images become one number; losses and metrics share this."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Per: TypeAlias = Literal["dataset", "image", "class"]

PER: tuple[Per, ...] = ("dataset", "image", "class")


def _mean(values: Tensor, weights: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Weighted mean along ``dim``, and where there was any weight; 0 where there was none."""
    total = weights.sum(dim)
    some = total != 0
    # Selected, not multiplied: an inactive value may be anything. NaN weights stay, so that they show in the result.
    summed = torch.where(weights == 0, 0.0, values * weights).sum(dim)
    return summed / torch.where(some, total, 1.0), some


def reduce_classes(values: Tensor, active: Tensor, per: Per, class_weight: Tensor | None = None) -> Tensor:
    """Average the values of active classes.

    The averages are those of fine-grained IoU (Wang et al., arXiv 2310.19252): D, I and C.

    Args:
        values: ``(N, C)``, a score or loss for each image and class; N = 1 under ``"dataset"``.
        active: boolean ``(N, C)``; only active values count.
        per: ``"dataset"`` and ``"image"`` average over an image's active classes and then over the images with any;
            ``"class"`` averages a class over the images where it is active, and then over the classes active anywhere.
        class_weight: ``(C,)`` non-negative weights of the classes in their average; None weighs all alike.

    Returns:
        A scalar; 0, still connected to ``values``, if nothing is active.

    Raises:
        ValueError: ``per`` is none of these.

    Example:
        >>> values = torch.tensor([[1.0, 0.0], [0.5, 9.0]])
        >>> active = torch.tensor([[True, True], [True, False]])
        >>> reduce_classes(values, active, "image"), reduce_classes(values, active, "class")
        (tensor(0.5000), tensor(0.3750))
    """
    if per not in PER:
        raise ValueError(f"per: expected one of {', '.join(map(repr, PER))}, got {per!r}")
    present = active.to(values.dtype)
    weight = values.new_ones(values.shape[1]) if class_weight is None else class_weight.to(values)
    if per == "class":
        by_class, seen = _mean(values, present, 0)
        return _mean(by_class, seen * weight, 0)[0]
    by_image, seen = _mean(values, present * weight, 1)
    return _mean(by_image, seen.to(values.dtype), 0)[0]

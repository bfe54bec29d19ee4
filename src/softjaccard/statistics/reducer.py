"""How scores of classes and images become one number; losses and metrics share this."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Per: TypeAlias = Literal["dataset", "image", "class"]

PER: tuple[Per, ...] = ("dataset", "image", "class")

#: A class is present in a region if its label exceeds this at some pixel.
CLASS_THRESHOLD = 0.01
#: A class is predicted in a region if its probability exceeds this at some pixel.
PREDICTED_THRESHOLD = 0.5


def _weigh(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    """The sums along ``dim`` that a weighted mean divides: of the weighted values, and of the weights."""
    # Selected, not multiplied: an inactive value may be anything. NaN weights stay, so that they show in the result.
    return torch.stack((torch.where(weights == 0, 0.0, values * weights).sum(dim), weights.sum(dim)))


def _divide(sums: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, 0 where there was no weight; and where there was any."""
    weighted, total = sums
    some = total != 0
    return weighted / torch.where(some, total, 1.0), some


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
    return reduce_sums(sum_images(values, active, per, class_weight), per, class_weight)


def sum_images(values: Tensor, active: Tensor, per: Per, class_weight: Tensor | None = None) -> Tensor:
    """What :func:`reduce_classes` has to know of some of the images; sums of several parts add.

    Returns:
        Sums of values, and how many there were: ``(2, C)`` under ``"class"``, else ``(2,)``.
    """
    present = active.to(values.dtype)
    if per == "class":
        return _weigh(values, present, 0)
    by_image, seen = _divide(_weigh(values, present * _or_ones(class_weight, values), 1))
    return _weigh(by_image, seen.to(values.dtype), 0)


def reduce_sums(sums: Tensor, per: Per, class_weight: Tensor | None = None) -> Tensor:
    """The average of :func:`reduce_classes` from what :func:`sum_images` knows of all images."""
    means, seen = _divide(sums)
    if per == "class":
        means, _ = _divide(_weigh(means, seen * _or_ones(class_weight, means), 0))
    return means


def _or_ones(class_weight: Tensor | None, values: Tensor) -> Tensor:
    return values.new_ones(values.shape[-1]) if class_weight is None else class_weight.to(values)

"""What a batch's label is while a network trains: from the tensors of a batch to a label of the losses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from softjaccard.data.module import Batch
from softjaccard.errors import InputError, check_settings
from softjaccard.labels import LabelLike, RaterLabel, SmoothedLabel, boundary, neighbourhood


class Target(NamedTuple):
    """A label of any kind, and the pixels that count where the label itself does not say."""

    label: LabelLike
    mask: Tensor | None = None
    """Boolean (B, H, W)."""


class TrainingLabel(ABC):
    """Makes a batch's label, on the device and anew in each step."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Target:
        """Return the label of a batch."""


class HardLabel(TrainingLabel):
    """The batch's hard label: one class a pixel; of several annotators, the one with most votes."""

    def __call__(self, batch: Batch) -> Target:
        """Return the label of a batch."""
        return Target(batch["label"])


class SmoothLabel(TrainingLabel):
    """The hard label, smoothed: a share of it is spread evenly over all classes (Szegedy et al., arXiv 1512.00567).

    Args:
        epsilon: The share; 0.5 in the paper's code for boundaries.
        kernel_size: Only pixels with another class in a window of so many pixels a side are smoothed, as in boundary
            label smoothing (arXiv 2302.05666); null smooths everywhere.

    Raises:
        InputError: If a value is out of its range.

    Example:
        >>> batch = {"label": torch.tensor([[[0, 0, 0, 1, 1]]])}
        >>> SmoothLabel(epsilon=0.5, kernel_size=3)(batch).label.dense(2)[0][0, 1]
        tensor([[0.0000, 0.0000, 0.2500, 0.7500, 1.0000]])
    """

    def __init__(self, epsilon: float = 0.5, kernel_size: int | None = 3) -> None:
        """See the class."""
        self.epsilon, self.kernel_size = epsilon, kernel_size
        odd = kernel_size is None or (kernel_size >= 3 and kernel_size % 2 == 1)
        checks = (
            ("epsilon", epsilon is not None and 0 <= epsilon <= 1, "a share from 0 to 1"),
            ("kernel_size", odd, "an odd number of at least 3, or null to smooth everywhere"),
        )
        check_settings("label", self, checks)

    def __call__(self, batch: Batch) -> Target:
        """Return the label of a batch."""
        index = batch["label"]
        where = None if self.kernel_size is None else boundary(index, self.kernel_size)
        return Target(SmoothedLabel(index, self.epsilon, where))


class NeighbourLabel(TrainingLabel):
    """The hard label, mixed with those of the pixels around; see :func:`~softjaccard.labels.neighbourhood`.

    Args:
        epsilon: The share of the neighbours.
        kernel_size: They lie in a window of so many pixels a side, an odd number.
        sigma: How fast their say falls off, in pixels.

    Raises:
        InputError: If a value is out of its range.

    Example:
        >>> batch = {"label": torch.tensor([[[0, 0, 0, 1, 1]]])}
        >>> NeighbourLabel(kernel_size=3, sigma=1e3)(batch).label.dense(2)[0][0, 1]
        tensor([[0.0000, 0.0000, 0.0625, 0.9375, 1.0000]])
    """

    def __init__(self, epsilon: float = 0.5, kernel_size: int = 3, sigma: float = 1.0) -> None:
        """See the class."""
        self.epsilon, self.kernel_size, self.sigma = epsilon, kernel_size, sigma
        checks = (
            ("epsilon", epsilon is not None and 0 <= epsilon <= 1, "a share from 0 to 1"),
            ("kernel_size", (kernel_size or 0) >= 3 and kernel_size % 2 == 1, "an odd number of at least 3"),
            ("sigma", 0.1 <= (sigma or 0.0) < math.inf, "a number of at least 0.1"),
        )
        check_settings("label", self, checks)

    def __call__(self, batch: Batch) -> Target:
        """Return the label of a batch."""
        return Target(neighbourhood(batch["label"], self.epsilon, self.kernel_size, self.sigma))


class AveragedVotes(TrainingLabel):
    """The distribution of several annotators' votes at each pixel, or the one that the data set gives."""

    def __call__(self, batch: Batch) -> Target:
        """Return the label of a batch.

        Raises:
            InputError: If the data have neither.
        """
        if "soft_label" in batch:
            # Where nobody voted it is zero; what interpolation leaves is below any share of a vote.
            return Target(batch["soft_label"], batch["soft_label"].sum(1) > 0.5)
        return Target(RaterLabel(_votes(batch)))


class RandomAnnotator(TrainingLabel):
    """The label of one annotator who labelled the image, another one in each epoch."""

    def __call__(self, batch: Batch) -> Target:
        """Return the label of a batch.

        Raises:
            InputError: If the data have no votes.
        """
        votes = _votes(batch)
        return Target(votes[torch.arange(len(votes), device=votes.device), batch["annotator"]])


def _votes(batch: Batch) -> Tensor:
    if "votes" not in batch:
        raise InputError(
            f"model.label: this label is made of several annotators' votes, but the data have only: {', '.join(batch)}."
        )
    return batch["votes"]

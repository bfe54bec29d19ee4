"""What the methods of semi-supervised training share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from softjaccard.data.module import Batch
from softjaccard.labels import LabelLike
from softjaccard.losses.base import expect_number


class PseudoLabel(NamedTuple):
    """What a network's output makes of unlabelled images."""

    label: LabelLike
    weight: Tensor
    """How much each pixel counts, booleans or numbers (B, H, W); padding is not yet left out."""


class Part(NamedTuple):
    """A part of a view's pixels with the pseudo-label that belongs there."""

    pseudo: PseudoLabel
    valid: Tensor
    """Boolean (B, H, W): the pixels of the part, without padding."""


class StreamLoss(NamedTuple):
    """The loss of one view of all images, and the share of its pixels that counted."""

    value: Tensor
    counted: Tensor


class SemiSupervisedMethod(nn.Module, ABC):
    """The loss of unlabelled images, of the views that :class:`~softjaccard.data.unlabelled.UnlabelledViews` draws.

    A label is made of the logits for weak views. The strong views have that of their image outside the pasted box, and
    that of the partner inside. No gradient goes through labels.

    Args:
        weight: Factor w of the unlabelled images: the loss of a step is (labelled + w * unlabelled) / (1 + w). With 0
            they are neither read nor shown to the network.
        threshold: Confidence, the largest probability, from which a pixel counts; from 0 to 1.

    Raises:
        ValueError: If a number is out of its range.
    """

    strong_weights: Sequence[float] = (0.25, 0.25)
    """Factors of the strong views, at least one."""
    perturbed_weight: float = 0.5
    """Factor of the weak view with features left out; with 0 there is none."""
    feature_dropout: float = 0.5
    """Probability of leaving out a channel of the encoder's stages in it."""
    average_decay: float = 0.0
    """Of the moving average of the network that makes the labels; with 0 the network itself makes them."""

    def __init__(self, weight: float, threshold: float) -> None:
        """See the class."""
        super().__init__()
        self.weight = expect_number("weight", weight)
        self.threshold = expect_number("threshold", threshold)
        if not self.strong_weights:
            raise ValueError("strong_weights: expected a factor for at least one strong view, got none")
        if threshold > 1:
            raise ValueError(f"threshold: expected a probability, got {threshold!r}")

    def forward(
        self, strong: Sequence[Tensor], perturbed: Tensor | None, own: Tensor, partner: Tensor, batch: Batch
    ) -> StreamLoss:
        """Return the weighted sum of the streams' losses, and the mean of their counted shares.

        Args:
            strong: Logits (B, C, h, w) for the strong views, one for each of `strong_weights`.
            perturbed: Logits for the weak view with features left out; None if `perturbed_weight` is 0.
            own: Logits of which the labels are made, for the weak views, at any resolution.
            partner: Likewise for the partners' weak views.
            batch: Has what `SegmentationData` says of unlabelled images.
        """
        size = batch["weak_image"].shape[-2:]
        valid, partner_valid = batch["weak_valid"], batch["partner_valid"]
        with torch.autocast(own.device.type, enabled=False):
            mine, theirs = (self.pseudo_label(logits.detach(), size) for logits in (own, partner))
            streams = [
                (weight, self.stream(logits, (Part(mine, valid & ~box), Part(theirs, partner_valid & box))))
                for weight, logits, box in zip(self.strong_weights, strong, batch["box"].unbind(1), strict=True)
            ]
            if perturbed is not None:
                streams.append((self.perturbed_weight, self.stream(perturbed, (Part(mine, valid),))))
            value = torch.stack([weight * each.value for weight, each in streams]).sum()
            return StreamLoss(value, torch.stack([each.counted for _, each in streams]).mean())

    @abstractmethod
    def pseudo_label(self, logits: Tensor, size: Sequence[int]) -> PseudoLabel:
        """Make the label (of height and width `size`) of logits without gradient."""

    @abstractmethod
    def stream(self, logits: Tensor, parts: Sequence[Part]) -> StreamLoss:
        """Return the loss of a view's logits on the labels of its disjoint parts; on all devices that of all images."""

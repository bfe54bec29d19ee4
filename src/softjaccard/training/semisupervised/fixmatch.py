"""FixMatch for segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softjaccard.data.transforms import IGNORE_INDEX
from softjaccard.losses import CrossEntropyLoss
from softjaccard.statistics import confidence_map
from softjaccard.training.semisupervised.base import Part, PseudoLabel, SemiSupervisedMethod, StreamLoss


class FixMatch(SemiSupervisedMethod):
    r"""FixMatch: cross-entropy of a strong view with the confident ones of the weak view's most probable classes.

    .. math:: \frac{1}{|V|} \sum_{i \in V} [q_i^* \ge \tau]\, (-\log p_{i, \arg\max q_i})

    with V the pixels of the batch that are not padding, q the probabilities for the weak view and q* the largest of a
    pixel, and p those for the strong view. Sohn et al., NeurIPS 2020, arXiv 2001.07685; with CutMix and the mean of the
    labelled and the unlabelled loss as in the code of UniMatch. The network itself makes the labels.

    Args:
        weight: See :class:`SemiSupervisedMethod`.
        threshold: The confidence tau.
    """

    strong_weights: Sequence[float] = (1.0,)
    perturbed_weight = 0.0

    def __init__(self, weight: float = 1.0, threshold: float = 0.95) -> None:
        """See the class."""
        super().__init__(weight, threshold)
        self.cross_entropy = CrossEntropyLoss(ignore_index=IGNORE_INDEX)

    def pseudo_label(self, logits: Tensor, size: Sequence[int]) -> PseudoLabel:
        """See `SemiSupervisedMethod.pseudo_label`."""
        classes, confidence = confidence_map(logits, size)
        return PseudoLabel(classes, confidence >= self.threshold)

    def stream(self, logits: Tensor, parts: Sequence[Part]) -> StreamLoss:
        """See `SemiSupervisedMethod.stream`."""
        label = torch.full_like(parts[0].valid, IGNORE_INDEX, dtype=torch.int64)
        for part in parts:
            assert isinstance(part.pseudo.label, Tensor)
            label = torch.where(part.valid & part.pseudo.weight, part.pseudo.label, label)
        statistics = self.cross_entropy.statistics(logits, label, want={"cross_entropy", "pixels"})
        valid = torch.stack([part.valid.sum() for part in parts]).sum().to(statistics["pixels"])
        total, sums = self.cross_entropy.over_ranks(statistics, {"valid": valid})
        pixels = sums["valid"].clamp(min=1)
        return StreamLoss(total["cross_entropy"].sum() / pixels, total["pixels"].sum() / pixels)

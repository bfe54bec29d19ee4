"""Semi-supervised training with Jaccard metric losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from softjaccard.labels import TeacherLabel
from softjaccard.losses import JaccardLoss
from softjaccard.losses.base import expect_number, expect_temperature
from softjaccard.statistics import confidence_map
from softjaccard.statistics.reducer import PREDICTED_THRESHOLD, Per
from softjaccard.training.semisupervised.base import Part, PseudoLabel, SemiSupervisedMethod, StreamLoss

Confidence = Literal["mask", "weight", "classes"]


class JMLSemiSupervised(SemiSupervisedMethod):
    r"""UniMatch's views with soft pseudo-labels and the Jaccard metric loss (JML-SSL).

    .. math:: \lambda_K \frac{1}{|V|} \sum_{i \in V} w_i \sum_c -q_{ic} \log p_{ic}
              + \lambda_J\, \frac{\sum_{i \in V} w_i}{|V|}\, \mathrm{JML}(p, q; w)

    with V the pixels that are not padding, q the probabilities for the weak view, w what confidence makes a pixel
    count, and p the probabilities for the view in training; views and their factors as in :class:`UniMatch`. The share
    of pixels that count is a factor of the Jaccard loss, too, so that few confident pixels have little to say in both.
    Labels stay logits at the network's resolution: the statistics of a strong view are those of the pixels outside
    the box with its own label, and of those inside with the partner's.

    Wang et al. (arXiv 2302.05666) report such a training, but published no code of it; the recipe is this project's.
    Tried on CamVid (experiments/README.md): a threshold, which soft labels cannot do without, and the network itself,
    whose labels are better than those of an average over as many steps as a short training has.

    Args:
        weight: See :class:`SemiSupervisedMethod`.
        confidence: What the threshold does. mask: pixels under it do not count; weight: they count by confidence over
            threshold; classes: all pixels count, but the Jaccard loss is over those classes only that are more probable
            than the threshold somewhere in the batch.
        threshold: A probability: with mask and weight the network's own, before `temperature`; with classes the
            label's, behind it.
        temperature: Divides the logits of the label, above 0 and at most 1; below 1 it makes it sharper.
        per: Of the Jaccard loss: dataset is over the sums of the batch; see :class:`~softjaccard.JaccardLoss`.
        classes: Which enter its mean. present: those more probable than one half in some pixel that counts; with
            `confidence` classes, than the threshold. all: all.
        average_decay: Labels are made by the network itself; or above 0 by a moving average of its parameters and
            buffers, with this decay after a warm-up.
        region_weight: Factor of the Jaccard loss.
        cross_entropy_weight: Factor of the cross-entropy.

    Raises:
        ValueError: If an option is unknown or a number out of its range.
    """

    def __init__(
        self,
        weight: float = 1.0,
        confidence: Confidence = "mask",
        threshold: float = 0.95,
        temperature: float = 1.0,
        per: Per | Mapping[Per, float] = "dataset",
        classes: Literal["present", "all"] = "present",
        average_decay: float = 0.0,
        region_weight: float = 0.75,
        cross_entropy_weight: float = 0.25,
    ) -> None:
        """See the class."""
        super().__init__(weight, threshold)
        if confidence not in get_args(Confidence):
            raise ValueError(f"confidence: expected one of {', '.join(get_args(Confidence))}, got {confidence!r}")
        if confidence == "classes" and classes == "all":
            raise ValueError("classes: all leaves nothing to choose for confidence='classes'; expected present")
        if not 0 <= average_decay < 1:
            raise ValueError(f"average_decay: expected a number from 0 to below 1, got {average_decay!r}")
        self.confidence: Confidence = confidence
        if expect_temperature(temperature) > 1:
            raise ValueError(f"temperature: expected at most 1, for labels that are not blurred, got {temperature!r}")
        self.temperature, self.average_decay = temperature, average_decay
        peak = threshold if confidence == "classes" else PREDICTED_THRESHOLD
        self.region = JaccardLoss(per=per, classes=classes, class_threshold=peak)
        self.region_weight = expect_number("region_weight", region_weight)
        self.cross_entropy_weight = expect_number("cross_entropy_weight", cross_entropy_weight)

    def pseudo_label(self, logits: Tensor, size: Sequence[int]) -> PseudoLabel:
        """See `SemiSupervisedMethod.pseudo_label`."""
        label = TeacherLabel(logits, self.temperature)
        if self.confidence == "classes":
            return PseudoLabel(label, torch.ones((len(logits), *size), dtype=torch.bool, device=logits.device))
        _, confidence = confidence_map(logits, size)
        if self.confidence == "mask" or self.threshold == 0:
            return PseudoLabel(label, confidence >= self.threshold)
        return PseudoLabel(label, (confidence / self.threshold).clamp(max=1))

    def stream(self, logits: Tensor, parts: Sequence[Part]) -> StreamLoss:
        """See `SemiSupervisedMethod.stream`."""
        want = self.region.want | {"cross_entropy"}
        statistics, *others = (
            self.region.statistics(
                logits, pseudo.label, pseudo.weight.masked_fill(~valid, 0), size=valid.shape[-2:], want=want
            )
            for pseudo, valid in parts
        )
        statistics = sum(others, statistics)
        valid = torch.stack([part.valid.sum() for part in parts]).sum().to(statistics["pixels"])
        total, sums = self.region.over_ranks(statistics, {"valid": valid, **self.region.sum_images(statistics)})
        pixels = sums["valid"].clamp(min=1)
        counted = total["pixels"].sum() / pixels
        cross_entropy = total["cross_entropy"].sum() / pixels
        region = counted * self.region.average(total, sums)
        return StreamLoss(self.cross_entropy_weight * cross_entropy + self.region_weight * region, counted)

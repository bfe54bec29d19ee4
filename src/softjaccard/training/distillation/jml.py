"""Distillation with Jaccard metric losses."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from softjaccard.labels import TeacherLabel
from softjaccard.losses import JaccardLoss, KLDivergenceLoss
from softjaccard.losses.base import expect_number
from softjaccard.models.network import NetworkOutput
from softjaccard.training.distillation.base import DistillationTerm


class JMLDistillation(DistillationTerm):
    r"""Distillation with the Jaccard metric loss (JML-KD): the usual mix of losses on the teacher's soft label.

    .. math:: \lambda_J\, \mathrm{JML}(p, q)
              + \lambda_K\, T^2 \left(\tfrac12 \mathrm{KL}(q \,\|\, p) + \tfrac12 \mathrm{KL}(q' \,\|\, p')\right)

    with p and q the probabilities of the student's and the teacher's main head at temperature T and the image's
    resolution, and p' and q' those of the auxiliary heads. Where one of the networks has no auxiliary head the main
    heads have all of the divergence. The mean over pixels is over those that have a label. Wang et al., NeurIPS 2023,
    arXiv 2302.05666. Zero where the probabilities are equal.

    All that is trained with the hard label has the factor `label_weight`, so that with the defaults label and teacher
    count alike. In the authors' code a temperature divides only the teacher's logits in the Jaccard loss; here those of
    both networks.

    Args:
        weight: Factor of the term.
        label_weight: Factor of the losses on the hard label.
        temperature: T.
        classes: Which classes enter the mean of the Jaccard loss: present, those of which the teacher is confident by
            more than class_threshold somewhere in the batch; or all.
        class_threshold: A probability.
        region_weight: Factor of the Jaccard loss.
        divergence_weight: Factor of the divergence.
    """

    needs_auxiliary = True

    def __init__(
        self,
        weight: float = 0.5,
        label_weight: float = 0.5,
        temperature: float = 1.0,
        classes: Literal["present", "all"] = "present",
        class_threshold: float = 0.01,
        region_weight: float = 0.75,
        divergence_weight: float = 0.25,
    ) -> None:
        """See the class."""
        super().__init__(weight)
        self.label_weight = expect_number("label_weight", label_weight)
        self.region = JaccardLoss(
            classes=classes, class_threshold=class_threshold, temperature=temperature, upsample="bilinear"
        )
        self.divergence = KLDivergenceLoss(temperature=temperature, upsample="bilinear")
        self.region_weight = expect_number("region_weight", region_weight)
        self.divergence_weight = expect_number("divergence_weight", divergence_weight)

    def term(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor) -> Tensor:
        """See `DistillationTerm.term`."""
        size = counted.shape[-2:]
        # Both losses are formulas on the sums of one pass over the pixels.
        statistics = self.region.statistics(
            student.logits,
            TeacherLabel(teacher.logits),
            counted,
            size=size,
            want=self.region.want | self.divergence.want,
        )
        region, divergence = self.region.from_statistics(statistics), self.divergence.from_statistics(statistics)
        if student.auxiliary is not None and teacher.auxiliary is not None:
            auxiliary = self.divergence(student.auxiliary, TeacherLabel(teacher.auxiliary), counted, size=size)
            divergence = (divergence + auxiliary) / 2
        return self.region_weight * region + self.divergence_weight * divergence

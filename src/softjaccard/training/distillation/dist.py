"""Distillation by correlations."""

from __future__ import annotations

import torch
from torch import Tensor

from softjaccard.losses.base import expect_number
from softjaccard.models.network import NetworkOutput
from softjaccard.training.distillation.base import DistillationTerm, at_student_resolution, direction, selected

#: Deviations of this size relative to the values themselves are rounding.
_CONSTANT = 1e-6


class CorrelationDistillation(DistillationTerm):
    r"""Distillation from a stronger teacher (DIST): one minus Pearson correlations of the probabilities.

    .. math:: \lambda_1 \left(1 - \frac{1}{M} \sum_i \rho(p_{i\cdot}, q_{i\cdot})\right)
              + \lambda_2 \left(1 - \frac{1}{C} \sum_c \rho(p_{\cdot c}, q_{\cdot c})\right)

    with p and q (M, C) the probabilities of the student and the teacher at the M cells of the batch: the first term
    correlates over classes at each cell, the second over all cells of the (device's) batch for each class. Huang et
    al., NeurIPS 2022, arXiv 2205.10536. Zero where the probabilities are equal, but not only there.

    M are the cells of the student's map that count; the original counts ignored pixels. A cell or class whose
    probabilities are constant in one of the networks has no correlation and is left out of the mean, where the original
    takes a correlation of 0.

    Args:
        weight: Factor of the term.
        inter_weight: Factor of the correlations over classes.
        intra_weight: Factor of the correlations over cells.
    """

    def __init__(self, weight: float = 1.0, inter_weight: float = 1.0, intra_weight: float = 1.0) -> None:
        """See the class."""
        super().__init__(weight)
        self.inter_weight = expect_number("inter_weight", inter_weight)
        self.intra_weight = expect_number("intra_weight", intra_weight)

    def term(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor) -> Tensor:
        """See `DistillationTerm.term`."""
        *maps, cells = at_student_resolution(student.logits, teacher.logits, counted)
        p, q = (each.softmax(1) for each in selected(cells, *maps))
        return self.inter_weight * _distance(p, q) + self.intra_weight * _distance(p.T, q.T)


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over rows of one minus the correlation."""
    (first, first_varies), (second, second_varies) = _standardised(student), _standardised(teacher)
    defined = first_varies & second_varies
    # For vectors of length 1 this is one minus their product, without the cancellation.
    distances = (first - second).square().sum(1) / 2
    return torch.where(defined, distances, 0.0).sum() / defined.sum().clamp(min=1)


def _standardised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with mean 0 and length 1, and which of them are not constant."""
    deviations = rows - rows.mean(1, keepdim=True)
    length = deviations.norm(dim=1)
    varies = ~(length <= _CONSTANT * rows.norm(dim=1))  # NaN has to stay to be seen
    return direction(deviations, torch.where(varies, length, 0.0).unsqueeze(1)), varies

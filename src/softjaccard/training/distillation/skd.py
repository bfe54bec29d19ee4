"""Structured knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from softjaccard.losses.base import expect_number
from softjaccard.models.network import NetworkOutput
from softjaccard.training.distillation.base import DistillationTerm, at_student_resolution, direction, features_of


class StructuredDistillation(DistillationTerm):
    r"""The pixel-wise and the pair-wise term of structured knowledge distillation (SKD).

    .. math:: \lambda_1 \sum_n \frac{1}{|V_n|} \sum_{i \in V_n} \sum_c -q_{nci} \log p_{nci}
              + \frac{\lambda_2}{N} \sum_n \frac{1}{K^2} \sum_{k, l} (A^{teacher}_{nkl} - A^{student}_{nkl})^2

    with p and q the student's and the teacher's probabilities at the resolution of the student's logits, and A the
    cosines between the K = 2 x 2 parts of the feature map, each pooled to its maximum over positions. The lengths of
    the pooled features have no gradient, as in the original, and the two networks may differ in their number of
    features. Liu et al., CVPR 2019, arXiv 1903.04197, as in the authors' code. Their holistic term, an adversarial one,
    is left out.

    The pixel-wise term is a sum over images, and cross-entropy: where the student equals the teacher it is not 0 but
    the teacher's entropy. The pair-wise term is 0 there.

    V_n are the cells of image n that count; parts without one are left out of K, and images without one of N. The
    original counts ignored pixels, and cuts maps of odd size into more parts.

    Args:
        weight: Factor of the whole.
        pixel_weight: Factor of the pixel-wise term.
        pair_weight: Factor of the pair-wise term.
    """

    needs_features = True

    def __init__(self, weight: float = 1.0, pixel_weight: float = 10.0, pair_weight: float = 0.5) -> None:
        """See the class."""
        super().__init__(weight)
        self.pixel_weight = expect_number("pixel_weight", pixel_weight)
        self.pair_weight = expect_number("pair_weight", pair_weight)

    def term(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor) -> Tensor:
        """See `DistillationTerm.term`."""
        pixel = _pixel_term(*at_student_resolution(student.logits, teacher.logits, counted))
        pair = _pair_term(*at_student_resolution(features_of(student), features_of(teacher), counted))
        return self.pixel_weight * pixel + self.pair_weight * pair


def _pixel_term(student: Tensor, teacher: Tensor, cells: Tensor) -> Tensor:
    student, teacher = (torch.where(cells.unsqueeze(1), each, 0.0) for each in (student, teacher))
    entropies = -(teacher.softmax(1) * student.log_softmax(1)).sum(1)
    sums = torch.where(cells, entropies, 0.0).sum((1, 2))
    return (sums / cells.sum((1, 2)).clamp(min=1)).sum()


def _pair_term(student: Tensor, teacher: Tensor, cells: Tensor) -> Tensor:
    parts = _pooled(cells.unsqueeze(1).float()).squeeze(1) > 0
    difference = _cosines(teacher, cells, parts) - _cosines(student, cells, parts)
    pairs = parts.unsqueeze(1) & parts.unsqueeze(2)
    squares = torch.where(pairs, difference.square(), 0.0).sum((1, 2))
    images = parts.any(1).sum().clamp(min=1)
    return (squares / pairs.sum((1, 2)).clamp(min=1)).sum() / images


def _cosines(features: Tensor, cells: Tensor, parts: Tensor) -> Tensor:
    """The cosines (B, K, K) between the parts (B, K) of a map (B, D, h, w)."""
    lowest = torch.finfo(features.dtype).min
    pooled = _pooled(features.masked_fill(~cells.unsqueeze(1), lowest))
    pooled = torch.where(parts.unsqueeze(1), pooled, 0.0)
    pooled = direction(pooled, pooled.detach().norm(dim=1, keepdim=True))
    return pooled.transpose(1, 2) @ pooled


def _pooled(values: Tensor) -> Tensor:
    """The maxima (B, D, K) of the four quarters of a map (B, D, h, w)."""
    height, width = values.shape[-2:]
    quarter = ((height + 1) // 2, (width + 1) // 2)
    return functional.max_pool2d(values, quarter, ceil_mode=True).flatten(2)

"""Plain knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from softjaccard.labels import TeacherLabel
from softjaccard.losses import KLDivergenceLoss
from softjaccard.models.network import NetworkOutput
from softjaccard.training.distillation.base import DistillationTerm


class KLDistillation(DistillationTerm):
    """Mean over pixels of the Kullback-Leibler divergence of the student from the teacher, times temperature squared.

    Hinton et al., arXiv 1503.02531, at each pixel of the image. Both logits are interpolated to the image's resolution,
    a few rows at a time. On the main heads only. Zero where the student's probabilities are the teacher's.

    Implementations for segmentation commonly count ignored pixels; this one does not.

    Args:
        weight: Factor of the term.
        temperature: Divides the logits of both networks.

    Example:
        >>> import torch
        >>> output = NetworkOutput(torch.randn(2, 5, 8, 8), None, torch.randn(2, 16, 8, 8))
        >>> counted = torch.ones(2, 32, 32, dtype=torch.bool)
        >>> bool(KLDistillation(temperature=2.0)(output, output, counted).abs() < 1e-6)
        True
    """

    def __init__(self, weight: float = 1.0, temperature: float = 1.0) -> None:
        """See the class."""
        super().__init__(weight)
        self.divergence = KLDivergenceLoss(temperature=temperature, upsample="bilinear")

    def term(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor) -> Tensor:
        """See `DistillationTerm.term`."""
        value: Tensor = self.divergence(student.logits, TeacherLabel(teacher.logits), counted, size=counted.shape[-2:])
        return value

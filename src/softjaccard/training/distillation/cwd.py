"""Channel-wise distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from softjaccard.losses.base import expect_temperature
from softjaccard.models.network import NetworkOutput
from softjaccard.training.distillation.base import DistillationTerm, at_student_resolution


class ChannelWiseDistillation(DistillationTerm):
    r"""Channel-wise knowledge distillation (CWD) on the logits: each class's map is a distribution over positions.

    .. math:: \frac{T^2}{N C} \sum_{n, c} \sum_i q_{nci} \log\frac{q_{nci}}{p_{nci}}

    with p and q the softmax over the positions i of the student's and the teacher's logits, divided by T. Shu et al.,
    ICCV 2021, arXiv 2011.13256. Zero where the two distributions are equal.

    The softmax is over the cells of the student's map that count, and N the number of images that have one; the
    original counts ignored pixels.

    Args:
        weight: Factor of the term.
        temperature: T.
    """

    def __init__(self, weight: float = 3.0, temperature: float = 4.0) -> None:
        """See the class."""
        super().__init__(weight)
        self.temperature = expect_temperature(temperature)

    def term(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor) -> Tensor:
        """See `DistillationTerm.term`."""
        *maps, cells = at_student_resolution(student.logits, teacher.logits, counted)
        log_student, log_teacher = (self._log_softmax(each, cells) for each in maps)
        divergence = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
        images = cells.flatten(1).any(1).sum().clamp(min=1)
        return self.temperature**2 * divergence / (images * student.logits.shape[1])

    def _log_softmax(self, logits: Tensor, cells: Tensor) -> Tensor:
        """The logarithm of each map's distribution over the cells (B, C, h w); of no mass in the others."""
        # Not minus infinity, which makes NaN of an image without a cell that counts.
        lowest = torch.finfo(logits.dtype).min
        return (logits / self.temperature).masked_fill(~cells.unsqueeze(1), lowest).flatten(2).log_softmax(2)

"""Cross-image relational distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from softjaccard.errors import InputError
from softjaccard.losses.base import expect_temperature
from softjaccard.models.network import NetworkOutput
from softjaccard.training.distillation.base import (
    DistillationTerm,
    at_student_resolution,
    direction,
    features_of,
    selected,
)

#: Maps of at least so many cells a side are pooled first, if nothing else is said.
_POOLED_FROM = 256
_POOLING = 4
#: So many rows of similarities exist at a time.
_ROWS = 1024


class CrossImageRelationalDistillation(DistillationTerm):
    r"""The mini-batch term of cross-image relational knowledge distillation (CIRKD).

    .. math:: \frac{1}{N^2} \sum_{m, n} \frac{1}{|V_m|} \sum_{i \in V_m} \mathrm{KL}(q_{mni} \,\|\, p_{mni}), \quad
              p_{mni} = \mathrm{softmax}_{j \in V_n}(f_{mi}^T f_{nj} / T)

    with f the student's features of length 1 and q the same of the teacher's: for each ordered pair of the (device's)
    images, how similar a cell of the one is to each cell of the other. The two networks may differ in their number of
    features. Yang et al., CVPR 2022, arXiv 2204.06986; the terms with a memory bank are left out. Zero where the
    similarities are equal.

    V_n are the cells of image n that count, and N the number of images that have one; the original counts ignored
    pixels. Maps may be averaged over squares of cells first; here over those that count, if these are at least half.
    Similarities are computed some rows at a time and again in backward, because all of them would take gigabytes.

    Args:
        weight: Factor of the term.
        temperature: T.
        pooling: Cells a side of the squares that are averaged first; p makes the term about p^4 times faster. None
            has 4 for maps of at least 256 x 256 cells, as the original, and 1 for others.

    Raises:
        ValueError: If a number is out of its range.
        InputError: In training, if pooling leaves one cell.
    """

    needs_features = True

    def __init__(self, weight: float = 1.0, temperature: float = 0.1, pooling: int | None = None) -> None:
        """See the class."""
        super().__init__(weight)
        self.temperature = expect_temperature(temperature)
        if pooling is not None and not (isinstance(pooling, int) and pooling >= 1):
            raise ValueError(f"pooling: expected a whole number of at least 1, got {pooling!r}")
        self.pooling = pooling

    def term(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor) -> Tensor:
        """See `DistillationTerm.term`."""
        own, fixed, cells = at_student_resolution(features_of(student), features_of(teacher), counted)
        length = self.pooling or (_POOLING if min(cells.shape[-2:]) >= _POOLED_FROM else 1)
        if length >= max(cells.shape[-2:]) > 1:
            raise InputError(
                f"pooling is {length}, which leaves one cell of the features' {cells.shape[-2]} x {cells.shape[-1]}, "
                "and nothing to compare. Choose less."
            )
        if length > 1:
            own, fixed = _pooled(own, cells, length), _pooled(fixed, cells, length)
            cells = functional.avg_pool2d(cells.float(), length, ceil_mode=True) >= 0.5
        counts = cells.flatten(1).sum(1).tolist()
        vectors = (torch.split(_of_length_1(each), counts) for each in selected(cells, own, fixed))
        images = [pair for pair in zip(*vectors, strict=True) if len(pair[0])]
        total = own[:0].sum()
        for anchors in images:
            for others in images:
                total = total + self._divergence(*anchors, *others)
        return total / max(len(images), 1) ** 2

    def _divergence(self, student: Tensor, teacher: Tensor, other_student: Tensor, other_teacher: Tensor) -> Tensor:
        """The mean divergence of the rows of similarities of one image to another, unit vectors (M, D) each."""
        parts = [
            checkpoint(self._rows, *rows, other_student, other_teacher, use_reentrant=False, preserve_rng_state=False)
            for rows in zip(torch.split(student, _ROWS), torch.split(teacher, _ROWS), strict=True)
        ]
        return torch.stack(parts).sum() / len(student)

    def _rows(self, student: Tensor, teacher: Tensor, other_student: Tensor, other_teacher: Tensor) -> Tensor:
        similarities = student @ other_student.T, teacher @ other_teacher.T
        log_student, log_teacher = ((each / self.temperature).log_softmax(1) for each in similarities)
        return functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


def _pooled(features: Tensor, cells: Tensor, length: int) -> Tensor:
    """A map (B, D, h, w) averaged over squares of cells, up to the length of vectors over those that count."""
    return functional.avg_pool2d(torch.where(cells.unsqueeze(1), features, 0.0), length, ceil_mode=True)


def _of_length_1(vectors: Tensor) -> Tensor:
    return direction(vectors, vectors.norm(dim=1, keepdim=True))

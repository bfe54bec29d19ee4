"""Drawn logits and labels that look like those of a network on photographs, as far as speed can tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from softjaccard.labels import LabelLike, SmoothedLabel, TeacherLabel, boundary

LABELS = ("hard", "smoothed", "teacher")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Classes in one image, as in the usual data sets; with the grid below some 8 % of the pixels lie at a boundary.
_CLASSES_PER_IMAGE = 12
_GRID = 64
#: How much the logit of the label's class stands out of the noise, of standard deviation 1.
_AGREEMENT = 4.0


@dataclass(frozen=True)
class Inputs:
    """What a data loader and two networks would hand to a loss; everything else is made in the step, and timed."""

    label: str
    logits: Tensor
    """(B, C, h, w), requires grad."""
    index: Tensor
    """Class ids (B, H, W)."""
    teacher: Tensor | None
    """A teacher's logits (B, C, h, w), if the label is a teacher's."""

    def hardened(self) -> Inputs:
        """The same with the hard label."""
        return replace(self, label="hard", teacher=None)

    @property
    def size(self) -> torch.Size:
        """H and W."""
        return self.index.shape[1:]

    def own_label(self) -> LabelLike:
        """The label as this library takes it."""
        if self.teacher is not None:
            return TeacherLabel(self.teacher)
        return SmoothedLabel(self.index, 0.5, boundary(self.index)) if self.label == "smoothed" else self.index

    def full_logits(self) -> Tensor:
        """The logits at the label's resolution."""
        return self._full(self.logits)

    def full_label(self) -> Tensor:
        """The label as other libraries take it: class ids, or the distribution (B, C, H, W)."""
        if self.teacher is not None:
            return self._full(self.teacher).softmax(1)
        label = self.own_label()
        return label if isinstance(label, Tensor) else label.dense(self.logits.shape[1], dtype=self.logits.dtype)[0]

    def _full(self, logits: Tensor) -> Tensor:
        if logits.shape[2:] == self.size:
            return logits
        return F.interpolate(logits, size=self.size, mode="bilinear", align_corners=False)


def _regions(classes: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Class ids (H, W) in smooth regions: the largest of several smooth noise fields, one for each class drawn."""
    drawn = torch.randperm(classes, generator=generator)[:_CLASSES_PER_IMAGE]
    grid = [max(2, side // _GRID) for side in size]
    noise = torch.randn(1, len(drawn), *grid, generator=generator)
    return drawn[F.interpolate(noise, size=size, mode="bicubic", align_corners=True)[0].argmax(0)]


def _agreeing(index: Tensor, classes: int, stride: int, generator: torch.Generator) -> Tensor:
    """Logits (B, C, h, w): noise, and more at the label's class."""
    coarse = index[:, stride // 2 :: stride, stride // 2 :: stride].unsqueeze(1)
    logits = torch.randn(len(index), classes, *coarse.shape[2:], generator=generator)
    return logits.scatter_add_(1, coarse, torch.full(coarse.shape, _AGREEMENT))


@lru_cache(maxsize=1)
def draw(shape: tuple[int, int, int, int], stride: int, label: str, dtype: str, device: torch.device) -> Inputs:
    """The same inputs every time, for ``shape`` (B, C, H, W) with logits smaller by ``stride``."""
    images, classes, height, width = shape
    generator = torch.Generator().manual_seed(0)
    index = torch.stack([_regions(classes, (height, width), generator) for _ in range(images)])

    def network() -> Tensor:
        return _agreeing(index, classes, stride, generator).to(device, DTYPES[dtype])

    logits = network().requires_grad_()
    return Inputs(label, logits, index.to(device), network() if label == "teacher" else None)

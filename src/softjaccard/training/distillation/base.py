"""What the terms of knowledge distillation share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from softjaccard.errors import InputError
from softjaccard.losses.base import expect_number
from softjaccard.models.network import NetworkOutput


class DistillationTerm(nn.Module, ABC):
    """What a student's loss has on top of the hard label's: the distance of its output to a teacher's.

    Pixels without a label change neither its value nor its gradient, as far as interpolation to another resolution does
    not reach from them into others, and without any labelled pixel it is 0. The gradient goes to the student only. Sums
    are in float32 at least, under autocast too.

    Args:
        weight: Factor of the term.
    """

    label_weight: float = 1.0
    """Factor of all that is trained with the hard label, for the training module to apply."""
    needs_features: bool = False
    """Whether the term looks at the networks' features."""
    needs_auxiliary: bool = False
    """Whether the term looks at the auxiliary heads, where both networks have one."""

    def __init__(self, weight: float) -> None:
        """See the class."""
        super().__init__()
        self.weight = expect_number("weight", weight)

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor) -> Tensor:
        """Return the term, weight included, as a scalar.

        Args:
            student: The student's output for a batch.
            teacher: The teacher's for the same images, at any resolution.
            counted: Boolean (B, H, W), which of the images' pixels have a label.

        Raises:
            InputError: If the networks differ in their number of classes.
        """
        classes, expected = teacher.logits.shape[1], student.logits.shape[1]
        if classes != expected:
            raise InputError(
                f"The teacher has {classes} classes, but the student has {expected}. "
                "Choose a teacher that was trained on the same classes."
            )
        fixed = NetworkOutput(
            teacher.logits.detach(),
            None if teacher.auxiliary is None else teacher.auxiliary.detach(),
            None if teacher.features is None else teacher.features.detach(),
        )
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.weight * self.term(student, fixed, counted)

    @abstractmethod
    def term(self, student: NetworkOutput, teacher: NetworkOutput, counted: Tensor) -> Tensor:
        """Return the term without its weight; the teacher's tensors have no gradient."""


def at_student_resolution(student: Tensor, teacher: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a map of each network and the cells that count, all at the resolution of the student's map.

    A cell counts if at least half of its image pixels do. The teacher's map is interpolated if it has another
    resolution, as logits are to the image: with the cells around, whether they count or not.

    Args:
        student: (B, D, h, w).
        teacher: (B, D', h', w').
        counted: Boolean (B, H, W).

    Returns:
        The maps (B, D, h, w) and (B, D', h, w) in float32, or float64 if they are, and booleans (B, h, w).
    """
    size = (student.shape[-2], student.shape[-1])
    student, teacher = (each if each.dtype == torch.float64 else each.float() for each in (student, teacher))
    if teacher.shape[-2:] != size:
        teacher = functional.interpolate(teacher, size=size, mode="bilinear", align_corners=False)
    share = functional.adaptive_avg_pool2d(counted.unsqueeze(1).float(), size).squeeze(1)
    return student, teacher, share >= 0.5


def features_of(output: NetworkOutput) -> Tensor:
    """Return the features (B, D, h, w) of a network's output.

    Raises:
        InputError: If only its logits are known.
    """
    if output.features is None:
        raise InputError(
            "This distillation compares features, but a network gives only logits. Choose a teacher that returns a "
            "NetworkOutput with features, or another method."
        )
    return output.features


def selected(cells: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
    """Return the vectors (M, D) of maps (B, D, h, w) at the M cells of a boolean map (B, h, w), image by image."""
    where = cells.nonzero(as_tuple=True)  # once, because it makes the host wait for the device
    return tuple(each.movedim(1, -1)[where] for each in maps)


def direction(vectors: Tensor, norm: Tensor) -> Tensor:
    """Return vectors divided by their norms; those of norm 0 stay, so that their gradient is finite."""
    return vectors / torch.where(norm == 0, 1.0, norm)

"""The plain backend: whole tensors and autograd. It is the oracle for the others.

It gives double backward and gradients to the label, at the price of several full-resolution temporaries.
"""

from __future__ import annotations

from torch import Tensor

from softjaccard.labels.kinds import Label, TeacherLabel
from softjaccard.statistics.pixels import Options, interpolate, resolve_pixels, sum_pixels


def reference(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> dict[str, Tensor]:
    """The sums ``(B, C)`` in ``options.want``; ``mask`` is ``(B, 1 or C, *spatial)``."""
    if isinstance(label, TeacherLabel):
        label = label.map(lambda teacher: interpolate(teacher, options))
    logits = interpolate(logits, options)
    return sum_pixels(resolve_pixels(logits, label, mask, options), options)

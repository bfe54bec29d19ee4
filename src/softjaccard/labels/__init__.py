"""What a pixel's label can be, and how to make soft ones.

A label is a tensor or one of a few small frozen dataclasses:

========================  ==========================================================================
hard                      integer tensor ``(B, *spatial)`` of class ids
distribution              float tensor ``(B, C, *spatial)``
:class:`SmoothedLabel`    hard ids, smoothed everywhere or where :func:`boundary` says
:class:`TeacherLabel`     a teacher's logits ``(B, C, *spatial)``
:class:`RaterLabel`       the votes of several annotators, integers ``(B, R, *spatial)``
:class:`NeighbourLabel`   hard ids, mixed with those of the pixels around; see :func:`neighbourhood`
========================  ==========================================================================

Integer means hard and float means a distribution; nothing is guessed. None of these makes the dense soft label
until somebody asks for it with :func:`dense` or the method ``.dense(num_classes, ignore_index)``.
"""

from softjaccard.labels.boundaries import boundary
from softjaccard.labels.kinds import (
    Label,
    LabelLike,
    NeighbourLabel,
    RaterLabel,
    SmoothedLabel,
    TeacherLabel,
    as_label,
    dense,
)
from softjaccard.labels.neighbours import neighbourhood

__all__ = [
    "Label",
    "LabelLike",
    "NeighbourLabel",
    "RaterLabel",
    "SmoothedLabel",
    "TeacherLabel",
    "as_label",
    "boundary",
    "dense",
    "neighbourhood",
]

"""Losses: formulas on region statistics.

Every loss is a module, called as ``loss(logits, label, mask=None)`` with a label of any kind, and a function of the
same name in small letters. ``loss.from_statistics(statistics)`` computes it from sums that are there already.

=======================  ==============================================================================
:class:`JaccardLoss`     one minus the soft IoU; right on soft labels by default (``form="metric"``)
:class:`DiceLoss`        one minus the soft Dice score
:class:`TverskyLoss`     both and everything between: alpha weighs false positives, beta false negatives
:class:`CrossEntropyLoss`, :class:`KLDivergenceLoss`  for labels of any kind, from the same sums
:class:`CompoundLoss`    a region loss and cross-entropy in one pass over the pixels
=======================  ==============================================================================
"""

from softjaccard.losses.accumulation import accumulated_backward
from softjaccard.losses.compound import CompoundLoss, compound_loss
from softjaccard.losses.cross_entropy import CrossEntropyLoss, KLDivergenceLoss, cross_entropy, kl_divergence
from softjaccard.losses.region import (
    DiceLoss,
    JaccardLoss,
    RegionOptions,
    TverskyLoss,
    dice_loss,
    jaccard_loss,
    tversky_loss,
)

__all__ = [
    "CompoundLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "JaccardLoss",
    "KLDivergenceLoss",
    "RegionOptions",
    "TverskyLoss",
    "accumulated_backward",
    "compound_loss",
    "cross_entropy",
    "dice_loss",
    "jaccard_loss",
    "kl_divergence",
    "tversky_loss",
]

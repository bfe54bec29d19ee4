"""Jaccard metric losses for image segmentation: IoU and Dice losses that are right on soft labels.

>>> import torch, softjaccard
>>> loss = softjaccard.CompoundLoss(softjaccard.JaccardLoss(ignore_index=255))
>>> logits, label = torch.randn(2, 5, 32, 32, requires_grad=True), torch.randint(0, 5, (2, 32, 32))
>>> loss(logits, softjaccard.SmoothedLabel(label, epsilon=0.5, where=softjaccard.boundary(label))).backward()

Losses are in :mod:`softjaccard.losses`, soft labels in :mod:`softjaccard.labels`, the sums that both meet in in
:mod:`softjaccard.statistics`, scores in :mod:`softjaccard.metrics`; see each for its own overview.
"""

from softjaccard.labels import RaterLabel, SmoothedLabel, TeacherLabel, boundary, dense, neighbourhood
from softjaccard.losses import (
    CompoundLoss,
    CrossEntropyLoss,
    DiceLoss,
    JaccardLoss,
    KLDivergenceLoss,
    SumLoss,
    TverskyLoss,
    accumulated_backward,
    compound_loss,
    cross_entropy,
    dice_loss,
    jaccard_loss,
    kl_divergence,
    tversky_loss,
)
from softjaccard.statistics import FIELDS, RegionStatistics, region_statistics

__version__ = "0.1.0"

__all__ = [
    "FIELDS",
    "CompoundLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "JaccardLoss",
    "KLDivergenceLoss",
    "RaterLabel",
    "RegionStatistics",
    "SmoothedLabel",
    "SumLoss",
    "TeacherLabel",
    "TverskyLoss",
    "accumulated_backward",
    "boundary",
    "compound_loss",
    "cross_entropy",
    "dense",
    "dice_loss",
    "jaccard_loss",
    "kl_divergence",
    "metrics",
    "neighbourhood",
    "region_statistics",
    "tversky_loss",
]


def __getattr__(name: str) -> object:
    """Load ``softjaccard.metrics``, and with it torchmetrics, on first use."""
    if name == "metrics":
        from importlib import import_module

        return import_module("softjaccard.metrics")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Scores of predictions, as pure functions and as torchmetrics classes that add up over batches and ranks.

:class:`FineGrainedIoU` averages accuracy, IoU and Dice over the data set, over images and over classes, and
:class:`BoundaryIoU` looks at the pixels near contours; :func:`bootstrap_interval` and :func:`paired_bootstrap` say how
far such a score could be off by chance. :class:`SoftScores` compares probabilities with a soft label, such as the votes
of annotators, and :class:`CalibrationError` confidence with accuracy. This package needs torchmetrics, so
``import softjaccard`` alone does not load it.
"""

from softjaccard.metrics.bootstrap import Interval, PairedDifference, bootstrap_interval, paired_bootstrap
from softjaccard.metrics.boundary_iou import BoundaryIoU, boundary_counts
from softjaccard.metrics.calibration import CalibrationError, calibration_scores
from softjaccard.metrics.confidence import CalibrationSums, calibration_sums
from softjaccard.metrics.counts import image_counts
from softjaccard.metrics.iou import FineGrainedIoU, fine_grained_iou, score_names, table_score
from softjaccard.metrics.soft import SoftScores, soft_scores

__all__ = [
    "BoundaryIoU",
    "CalibrationError",
    "CalibrationSums",
    "FineGrainedIoU",
    "Interval",
    "PairedDifference",
    "SoftScores",
    "bootstrap_interval",
    "boundary_counts",
    "calibration_scores",
    "calibration_sums",
    "fine_grained_iou",
    "image_counts",
    "paired_bootstrap",
    "score_names",
    "soft_scores",
    "table_score",
]

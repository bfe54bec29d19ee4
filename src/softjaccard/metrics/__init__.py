"""Scores of predictions, as pure functions and as torchmetrics classes that add up over batches and ranks.

:class:`FineGrainedIoU` averages IoU over the data set, over images and over classes; :class:`CalibrationError` compares
confidence with accuracy. This package needs torchmetrics, so ``import softjaccard`` alone does not load it.
"""

from softjaccard.metrics.calibration import CalibrationError, calibration_scores
from softjaccard.metrics.confidence import CalibrationSums, calibration_sums
from softjaccard.metrics.iou import FineGrainedIoU, fine_grained_iou, image_counts

__all__ = [
    "CalibrationError",
    "CalibrationSums",
    "FineGrainedIoU",
    "calibration_scores",
    "calibration_sums",
    "fine_grained_iou",
    "image_counts",
]

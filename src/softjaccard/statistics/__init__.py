"""Logits and labels in, small sums out: everything that the losses need to know about the pixels.

:func:`region_statistics` turns ``logits`` and a label of any kind into a :class:`RegionStatistics`: one number for
each image and class, such as the sum of the probabilities or their overlap with the label. Losses and metrics are
formulas on these; :mod:`softjaccard.statistics.reducer` averages them over classes and images.
"""

from softjaccard.statistics.classes import class_map, confidence_map
from softjaccard.statistics.pixels import FIELDS
from softjaccard.statistics.reducer import reduce_classes
from softjaccard.statistics.region import RegionStatistics, region_statistics

__all__ = ["FIELDS", "RegionStatistics", "class_map", "confidence_map", "reduce_classes", "region_statistics"]

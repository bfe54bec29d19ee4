"""Training: Lightning modules, optimisers and runs that are kept in a folder."""

from softjaccard.training.optimisation import OptimiserSettings
from softjaccard.training.supervised import SupervisedSegmentation

__all__ = ["OptimiserSettings", "SupervisedSegmentation"]

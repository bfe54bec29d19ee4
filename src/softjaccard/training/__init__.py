"""Training: Lightning modules, what they are trained on and with, optimisers, and runs that are kept in a folder."""

from softjaccard.training.distillation import Distillation
from softjaccard.training.objectives import Objective, Objectives
from softjaccard.training.optimisation import OptimiserSettings
from softjaccard.training.semisupervised import SemiSupervised
from softjaccard.training.supervised import SupervisedSegmentation
from softjaccard.training.targets import (
    AveragedVotes,
    HardLabel,
    NeighbourLabel,
    RandomAnnotator,
    SmoothLabel,
    Target,
    TrainingLabel,
)

__all__ = [
    "AveragedVotes",
    "Distillation",
    "HardLabel",
    "NeighbourLabel",
    "Objective",
    "Objectives",
    "OptimiserSettings",
    "RandomAnnotator",
    "SemiSupervised",
    "SmoothLabel",
    "SupervisedSegmentation",
    "Target",
    "TrainingLabel",
]

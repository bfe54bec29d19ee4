"""Which cases are measured."""

from __future__ import annotations

from fnmatch import fnmatch
from itertools import product
from typing import TypeAlias

from benchmarks.checks import CheckCase
from benchmarks.inputs import DTYPES, LABELS
from benchmarks.loader import LoaderCase
from benchmarks.losses import BASELINE, CONTENDERS, LossCase
from benchmarks.metrics import METRICS, MetricCase
from benchmarks.semisupervised import METHODS, TrainingCase

Case: TypeAlias = LossCase | MetricCase | LoaderCase | TrainingCase | CheckCase
Shape: TypeAlias = tuple[int, int, int, int]

#: Cityscapes, PASCAL VOC and ADE20K, as they are trained.
SHAPES: tuple[Shape, ...] = (
    (2, 19, 512, 1024),
    (8, 19, 512, 1024),
    (8, 21, 512, 512),
    (1, 150, 512, 512),
    (2, 150, 512, 512),
    (4, 150, 512, 512),
    (8, 150, 512, 512),
)
STRIDES = (1, 4)
#: What the CPU's targets are about; see :mod:`benchmarks.report`.
CPU_SETTINGS: tuple[tuple[Shape, int], ...] = (
    ((2, 19, 512, 1024), 1),
    ((1, 150, 512, 512), 1),
    ((2, 19, 512, 1024), 4),
    ((2, 150, 512, 512), 4),
)
#: Other numbers of classes, for the plots.
_OTHER_CLASSES: dict[str, tuple[Shape, ...]] = {
    "cpu": ((2, 4, 512, 1024),),
    "cuda": ((8, 4, 512, 1024), (8, 50, 512, 1024)),
}
_IN_PLOTS = (BASELINE, "chunked", "triton", "reference", "compiled", "smp-jaccard", "monai-dice")
#: What is measured for other labels and dtypes than the usual ones, unless everything is.
_FUSED = ("chunked", "triton")
_USUAL = ("hard", "float32")
_OTHERS = (("smoothed", "float32"), ("teacher", "float32"), ("hard", "bfloat16"))


def select(device: str, everything: bool) -> list[Case]:
    """The cases for a kind of device: without ``everything`` what a CPU does in some ten minutes."""
    settings = CPU_SETTINGS if device == "cpu" and not everything else tuple(product(SHAPES, STRIDES))
    cases: list[Case] = []
    for (shape, stride), (label, dtype) in product(
        settings, product(LABELS, DTYPES) if everything else (_USUAL, *_OTHERS)
    ):
        losses = CONTENDERS if everything or (label, dtype) == _USUAL else _FUSED
        cases += (LossCase(loss, shape, stride, label, dtype) for loss in losses)
    for shape, stride, loss in product(_OTHER_CLASSES[device], STRIDES, _IN_PLOTS):
        cases.append(LossCase(loss, shape, stride, *_USUAL))
    cases += (MetricCase(metric, (1024, 2048)) for metric in METRICS)
    cases += (LoaderCase((360, 480), workers, cache) for cache in (True, False) for workers in (0, 1, 2))
    cases += map(TrainingCase, METHODS)
    return [case for case in cases if not _impossible(case, device)]


def select_quick(device: str) -> list[Case]:
    """Tiny cases, to see that everything works."""
    cases: list[Case] = [LossCase(loss, (1, 5, 32, 64), 4, *_USUAL) for loss in CONTENDERS]
    cases += (MetricCase(metric, (32, 64)) for metric in METRICS)
    cases += (LoaderCase((60, 80), workers, cache=True) for workers in (0, 1))
    cases += (TrainingCase(method, 2, (32, 64)) for method in METHODS)
    return [case for case in cases if not _impossible(case, device)]


def matching(cases: list[Case], patterns: list[str]) -> list[Case]:
    """The cases whose names match one of the patterns."""
    return [case for case in cases if any(fnmatch(case.name, pattern) for pattern in patterns)]


def _impossible(case: Case, device: str) -> bool:
    if device == "cuda":
        return isinstance(case, LoaderCase)
    return isinstance(case, LossCase) and CONTENDERS[case.loss].cuda_only

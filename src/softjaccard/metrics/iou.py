"""Fine-grained scores: accuracy, IoU and Dice, over the data set, over images, over classes, and of the worst images.

After Wang et al., Revisiting evaluation metrics for semantic segmentation, arXiv 2310.19252.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from softjaccard.labels.checks import describe, is_integer
from softjaccard.metrics.counts import image_counts
from softjaccard.metrics.table import CountsTable
from softjaccard.statistics.reducer import Per, reduce_classes

ActiveRule: TypeAlias = Literal["present", "predicted", "either", "all"]
Classes: TypeAlias = ActiveRule | Sequence[int] | None

FAMILIES = ("Acc", "IoU", "Dice")
#: The quantiles, in percent, over which the worst-case scores are averaged.
DECILES = tuple(range(10, 101, 10))
_PER: dict[str, Per] = {"D": "dataset", "I": "image", "C": "class"}
_NAME = re.compile(r"m(Acc|IoU|Dice)_(?:(D)|([IC])(?:_worst(_mean|\d+(?:\.\d+)?))?)")


@dataclass(frozen=True)
class Score:
    """One score of a table of counts; see :func:`fine_grained_iou`, whose names and options it has."""

    name: str
    family: str
    per: Per
    worst: tuple[float, ...] = ()
    classes: Classes = None
    binary: bool = False

    @classmethod
    def parse(cls, name: str, num_classes: int, classes: Classes = None, binary: bool = False) -> Score:
        """The score of this name, for tables of so many classes.

        Raises:
            ValueError: There is none, or an option is unknown.
        """
        check_classes(classes, binary, num_classes)
        if name == "Acc":
            return cls(name, "Acc", "dataset")
        found = _NAME.fullmatch(name)
        if not found:
            raise ValueError(
                f"score: expected Acc, or mAcc, mIoU or mDice with _D, _I or _C, of which the last two may go on with "
                f"_worst5 (or another percentage) or _worst_mean, such as mIoU_I_worst5; got {name!r}"
            )
        family, dataset, other, worst = found.groups()
        quantiles = DECILES if worst == "_mean" else (float(worst),) if worst else ()
        _check_quantiles(quantiles)
        return cls(name, family, _PER[dataset or other], quantiles, classes, binary)

    def terms(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The values that are averaged, and which of them count, ``(N, C)``; N is 1 per data set."""
        return self.values(counts.sum(0, keepdim=True) if self.per == "dataset" else counts)

    def values(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The same of counts ``(..., C, 3)`` that are summed up as far as needed, ``(..., C)``."""
        if self.name == "Acc":
            counts = counts.sum(-2, keepdim=True)
        return ratio(counts, self.family), self._active(counts)

    def reduce(self, values: Tensor, active: Tensor) -> Tensor:
        """The average of the terms, a scalar."""
        if not self.worst:
            return reduce_classes(values, active, self.per)
        if self.per == "image":
            values, active = _means(values, active, 1).unsqueeze(1), active.any(1, keepdim=True)
        return reduce_classes(_lowest(values, active, self.worst), active.any(0, keepdim=True), "dataset")

    def of(self, counts: Tensor) -> Tensor:
        """The score of a table ``(N, C, 3)`` of at least one image, a scalar."""
        return self.reduce(*self.terms(counts))

    def _active(self, counts: Tensor) -> Tensor:
        """Which class of which image enters the average."""
        present = counts[..., 0] + counts[..., 2] > 0
        if self.name == "Acc":
            return present
        if self.binary:
            active = active_classes(counts, [1])
            if self.per != "image":
                active = active & active_classes(counts, "either")
        else:
            default: ActiveRule = "either" if self.per == "dataset" else "present"
            active = active_classes(counts, default if self.classes is None else self.classes)
        # Without a label there is no share of it that is found.
        return active & present if self.family == "Acc" else active


def ratio(counts: Tensor, family: str) -> Tensor:
    """Accuracy tp / (tp + fn), IoU tp / (tp + fp + fn) or Dice 2 tp / (2 tp + fp + fn); 0 / 0 is 1, as in losses."""
    hits, false_positive, false_negative = counts.double().unbind(-1)
    if family == "Dice":
        hits = 2 * hits
    total = hits + false_negative if family == "Acc" else hits + false_positive + false_negative
    return torch.where(total > 0, hits / total.clamp(min=1), 1.0)


def active_classes(counts: Tensor, classes: ActiveRule | Sequence[int]) -> Tensor:
    """Which class of which row of counts ``(..., C, 3)`` the rule takes; none where no pixel counts."""
    hits, false_positive, false_negative = counts.unbind(-1)
    present, predicted = hits + false_negative > 0, hits + false_positive > 0
    return choose_classes(present, predicted, present.any(-1, keepdim=True), classes)


def choose_classes(present: Tensor, predicted: Tensor, counted: Tensor, classes: ActiveRule | Sequence[int]) -> Tensor:
    """Which class of which row the rule takes, boolean ``(..., C)``; ``counted`` ``(..., 1)``: has the row pixels."""
    if classes == "present":
        return present
    if classes == "predicted":
        return predicted
    if classes == "either":
        return present | predicted
    counted = counted.expand_as(present)
    if classes == "all":
        return counted
    listed = torch.zeros(present.shape[-1], dtype=torch.bool, device=present.device)
    listed[list(classes)] = True
    return counted & listed


def _means(values: Tensor, active: Tensor, dim: int) -> Tensor:
    """Means of the active values ``(N, C)`` along a dimension; 0 where there is none."""

    def mean(some: Tensor, of_these: Tensor) -> Tensor:
        return reduce_classes(some.unsqueeze(0), of_these.unsqueeze(0), "dataset")

    return torch.vmap(mean, in_dims=1 - dim)(values, active)


def _lowest(values: Tensor, active: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Mean of the lowest max(1, floor(q % n)) of each column's n active values ``(N, K)``, then over q; ``(1, K)``."""
    number = active.sum(0, keepdim=True)
    sums = torch.where(active, values, torch.inf).sort(0).values.cumsum(0)
    taken = [(number * quantile / 100).floor().long().clamp(min=1) for quantile in quantiles]
    lowest = torch.cat([sums.gather(0, count - 1) / count for count in taken]).mean(0, keepdim=True)
    return torch.where(number > 0, lowest, 0.0)


def score_names(quantiles: Sequence[float] = (1, 5)) -> Iterator[str]:
    """The names of all scores, with these quantiles in percent."""
    yield "Acc"
    for family in FAMILIES:
        yield f"m{family}_D"
        for per in ("I", "C"):
            yield f"m{family}_{per}"
            yield from (f"m{family}_{per}_worst{quantile:g}" for quantile in quantiles)
            yield f"m{family}_{per}_worst_mean"


def fine_grained_iou(
    counts: Tensor, *, classes: Classes = None, binary: bool = False, quantiles: Sequence[float] = (1, 5)
) -> dict[str, Tensor]:
    """The scores of a table of counts, after Wang et al., arXiv 2310.19252.

    With accuracy (tp / (tp + fn)), IoU (tp / (tp + fp + fn)) and Dice (2 tp / (2 tp + fp + fn)) of a class:

    - ``mIoU_D``: counts summed over the data set, IoU of each class, mean over classes;
    - ``mIoU_I``: IoU of each image and class, mean over an image's classes, then over images;
    - ``mIoU_C``: mean over the images of a class, then over classes;
    - ``mIoU_I_worst5``: mean over the lowest 5 % of the image values, that is over max(1, floor(5 % of n)) of n; the
      number is each of ``quantiles``;
    - ``mIoU_C_worst5``: for each class the mean over the lowest 5 % of its values in images, then over classes;
    - ``mIoU_I_worst_mean`` and ``mIoU_C_worst_mean``: mean of the worst-case scores at 10, 20, ..., 100 %;
    - ``IoU_D`` and ``IoU_C``: ``(C,)``, what mIoU_D and mIoU_C average over classes, 0 where a class is left out;
    - the same for ``Acc`` and ``Dice``;
    - ``Acc``: share of all pixels that are predicted right;
    - ``active_D`` and ``active_C``: boolean ``(C,)``, which classes mIoU_D and mIoU_C, and Dice, are averaged over.

    A class without pixels in the whole set is left out of all averages, and false in ``active_D`` and ``active_C``. An
    accuracy counts only for classes in the label. A mean of nothing is 0.

    Args:
        counts: ``(N, C, 3)``, tp, fp and fn of every image and class, as from :func:`image_counts`.
        classes: which classes count: ``"present"`` in the label, ``"predicted"``, ``"either"``, ``"all"``, or a list of
            ids; in the whole set for D, in the image for I and C. None: either for D, as in torchmetrics, and present
            for I and C. A class that counts without being predicted or labelled has the score 1.
        binary: whether only class 1 of two counts. Every image with pixels then enters I, and one in which class 1 is
            neither predicted nor labelled scores 1 in IoU and Dice, as in the authors' code; D and C leave it out.
            ``Acc`` is still over the pixels of both classes.
        quantiles: of the worst-case scores, in percent.

    Returns:
        Fractions in float64.

    Raises:
        TypeError: ``counts`` are not integers.
        ValueError: they have another shape, or an option is unknown or out of range.

    Example:
        >>> scores = fine_grained_iou(torch.tensor([[[8, 0, 2], [0, 2, 0], [0, 0, 0]]]))
        >>> scores["mIoU_D"].item(), scores["mIoU_I"].item(), scores["active_D"].tolist()
        (0.4, 0.8, [True, True, False])
    """
    counts = check_counts("counts", counts)
    _check_quantiles(quantiles)
    scores = {name: Score.parse(name, counts.shape[1], classes, binary).of(counts) for name in score_names(quantiles)}
    for family in FAMILIES:
        for per in ("D", "C"):
            values, active = Score.parse(f"m{family}_{per}", counts.shape[1], classes, binary).terms(counts)
            scores |= {f"{family}_{per}": _means(values, active, 0), f"active_{per}": active.any(0)}
    return scores


def table_score(counts: Tensor, score: str, *, classes: Classes = None, binary: bool = False) -> Tensor:
    """One score of a table of counts, by its name; see :func:`fine_grained_iou`.

    Example:
        >>> table_score(torch.tensor([[[3, 0, 1], [2, 1, 0]]]), "mDice_D")
        tensor(0.8286, dtype=torch.float64)
    """
    counts = check_counts("counts", counts)
    return Score.parse(score, counts.shape[1], classes, binary).of(counts)


def check_counts(name: str, counts: Tensor) -> Tensor:
    """The table; one image without pixels, which counts nowhere, if it has none.

    Raises:
        TypeError: It is not of integers.
        ValueError: It has another shape than (N, C, 3).
    """
    if not is_integer(counts):
        raise TypeError(f"{name}: expected integers (N, C, 3), got {describe(counts)}")
    if counts.ndim != 3 or counts.shape[2] != 3:
        raise ValueError(f"{name}: expected tp, fp, fn of each image and class, (N, C, 3), got {describe(counts)}")
    return counts if len(counts) else counts.new_zeros((1, *counts.shape[1:]))


def check_classes(classes: Classes, binary: bool, num_classes: int) -> None:
    """Raise a ValueError unless the rule can be used, with so many classes."""
    if binary and classes is not None:
        raise ValueError(f"classes: expected None where binary=True takes class 1 alone, got {classes!r}")
    if binary and num_classes != 2:
        raise ValueError(f"binary: expected 2 classes, got {num_classes}")
    if classes is None or classes in get_args(ActiveRule):
        return
    if isinstance(classes, str) or not classes or not all(isinstance(i, int) and i >= 0 for i in classes):
        raise ValueError(
            f"classes: expected one of {', '.join(map(repr, get_args(ActiveRule)))}, a list of class ids, or None, got "
            f"{classes!r}"
        )
    if max(classes) >= num_classes:
        raise ValueError(f"classes: expected ids below the number of classes {num_classes}, got {list(classes)}")


def _check_quantiles(quantiles: Sequence[float]) -> None:
    # They are part of the scores' names, from which they are read again.
    names = [f"{quantile:g}" for quantile in quantiles]
    if not all(
        0 < quantile <= 100 and float(name) == quantile and "e" not in name
        for quantile, name in zip(quantiles, names, strict=True)
    ):
        raise ValueError(
            "quantiles: expected percentages over 0 and up to 100, of at most 6 digits and not under 0.0001, got "
            f"{list(quantiles)}"
        )


class FineGrainedIoU(CountsTable):
    """Accuracy, IoU and Dice for D, I and C, with the worst cases; see :func:`fine_grained_iou` for their meaning.

    Keeps tp, fp and fn of every image and class in one int64 table with the images' ids, which is gathered over ranks;
    it grows by images x (3 C + 1) x 8 bytes, and nothing else does. :meth:`table` gives it out.

    Args:
        num_classes: C, at least 2.
        ignore_index: pixels with this label do not count.
        classes: as in :func:`fine_grained_iou`.
        binary: likewise; needs C = 2.
        quantiles: likewise.
        **options: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: ``num_classes`` is less than 2, or an option is unknown or out of range.

    Example:
        >>> metric = FineGrainedIoU(num_classes=2, ignore_index=255)
        >>> metric.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 255]]), image_ids=[7])
        >>> metric.update(torch.tensor([[1, 1]]), torch.tensor([[1, 1]]), image_ids=[3])
        >>> {name: round(metric.compute()[name].item(), 3) for name in ("mIoU_D", "mIoU_I", "mIoU_C")}
        {'mIoU_D': 0.667, 'mIoU_I': 0.833, 'mIoU_C': 0.833}
        >>> counts, ids = metric.table()
        >>> ids
        tensor([3, 7])
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = -100,
        *,
        classes: Classes = None,
        binary: bool = False,
        quantiles: Sequence[float] = (1, 5),
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(num_classes, ignore_index, **options)
        check_classes(classes, binary, num_classes)
        _check_quantiles(quantiles)
        self.classes, self.binary, self.quantiles = classes, binary, tuple(quantiles)

    def counts(self, predictions: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`image_counts`."""
        return image_counts(predictions, label, self.num_classes, mask=mask, ignore_index=self.ignore_index)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores; see :func:`fine_grained_iou`."""
        return fine_grained_iou(self.table()[0], classes=self.classes, binary=self.binary, quantiles=self.quantiles)

"""Region losses: Jaccard, Dice and Tversky, in forms that are right on soft labels and in the classic one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import torch
from torch import Tensor

from softjaccard.labels import LabelLike
from softjaccard.labels.kinds import Activation
from softjaccard.losses.base import StatisticsLoss, expect_number, value_of
from softjaccard.statistics.distributed import ProcessGroupLike
from softjaccard.statistics.reducer import (
    CLASS_THRESHOLD,
    PER,
    PREDICTED_THRESHOLD,
    Per,
    reduce_classes,
    reduce_sums,
    sum_images,
)
from softjaccard.statistics.region import Backend, Gradient, RegionStatistics, Upsample

if TYPE_CHECKING:
    from typing_extensions import Unpack

Form: TypeAlias = Literal["metric", "metric2", "product"]
ClassRule: TypeAlias = Literal["auto", "present", "predicted", "either", "all"]
Reduction: TypeAlias = Literal["mean", "none"]

#: Denominators and scores under this are taken as 0, so that no gradient leaves the range of float32.
_TINY = 1e-30

_PEAKS: dict[str, frozenset[str]] = {
    "auto": frozenset({"label_peak"}),
    "present": frozenset({"label_peak"}),
    "predicted": frozenset({"prediction_peak"}),
    "either": frozenset({"label_peak", "prediction_peak"}),
    "all": frozenset(),
}


class RegionOptions(TypedDict, total=False):
    """The options of :class:`TverskyLoss` besides alpha and beta, for the named losses and the functions."""

    form: Form
    per: Per | Mapping[Per, float]
    classes: ClassRule | Sequence[int]
    class_threshold: float
    class_weight: Sequence[float] | Tensor | None
    smooth: float
    log: bool
    gamma: float
    activation: Activation
    temperature: float
    gradient: Gradient
    ignore_index: int
    upsample: Upsample
    align_corners: bool
    reduction: Reduction
    backend: Backend
    process_group: ProcessGroupLike


class TverskyLoss(StatisticsLoss):
    r"""One minus the Tversky index of each class, averaged over classes.

    .. math:: 1 - \frac{TP + s}{TP + \alpha\,FP + \beta\,FN + s}

    With p the probabilities and y the label of a class over the pixels that count, and :math:`o = \sum\min(p, y)`:

    ============  ===================  =======================  =======================
    form          TP                   FP                       FN
    ============  ===================  =======================  =======================
    ``metric``    :math:`o`            :math:`\sum p - o`       :math:`\sum y - o`
    ``metric2``   :math:`\sum p y`     :math:`\sum p - o`       :math:`\sum y - o`
    ``product``   :math:`\sum p y`     :math:`\sum p - \sum py` :math:`\sum y-\sum py`
    ============  ===================  =======================  =======================

    On hard labels the three are equal. On soft ones the metric forms are 0 where p = y and positive elsewhere; the
    classic product form is not, and its minimum lies at a corner. With alpha = beta = 1 (Jaccard) ``metric`` and
    ``metric2`` are the Jaccard metric losses JML1 and JML2 of Wang, Ning and Blaschko (arXiv 2302.05666); with 1/2
    (Dice) they are the Dice semimetric losses (arXiv 2303.16296).

    Args:
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.
        form: ``"metric"``, ``"metric2"`` or ``"product"``.
        per: what the score is taken over. ``"dataset"``: sums over the whole batch (towards mIoU^D); ``"image"``: each
            image, averaged over its active classes and then over images (mIoU^I); ``"class"``: each image, averaged for
            each class over the images where it is active and then over classes (mIoU^C); or a mapping of weights,
            used as given, such as ``{"image": 0.5, "class": 0.5}``.
        classes: which classes are active and enter the mean. ``"present"``: the label exceeds ``class_threshold``
            somewhere; ``"predicted"``: the prediction exceeds 1/2 somewhere; ``"either"``; ``"all"``; a list of ids; or
            ``"auto"``: present for hard labels, all for soft ones (by the label's type) and under sigmoid.
        class_threshold: see ``classes``.
        class_weight: ``(C,)`` weights of the classes in their mean, divided by the sum over active classes.
        smooth: s above; the paper's configurations use 1. With 0, 0/0 counts as a score of 1. A class without label
            has the loss f / (f + s) with f its false positives, so s says how much stray probability is forgiven.
        log: take -log of the score in place of one minus it; clamped, so that value and gradient stay finite.
        gamma: power on each class's loss, at least 1.
        activation: ``"softmax"``; ``"sigmoid"`` for binary and multilabel masks; None: the input is probabilities.
        temperature: divides the logits, and a teacher's unless it has its own.
        gradient: ``"exact"``, or ``"error_scaled"`` against over-confidence; see
            :func:`~softjaccard.statistics.region_statistics`.
        ignore_index: the class id of pixels that do not count.
        upsample: ``"bilinear"`` for logits of a lower resolution than the label, which are interpolated inside; see
            :func:`~softjaccard.statistics.region_statistics`.
        align_corners: of the interpolation.
        reduction: ``"mean"``, or ``"none"`` for the losses of the classes, ``(C,)`` per data set and ``(B, C)`` per
            image or class, 0 where inactive and without class weights.
        backend: ``"auto"``, ``"chunked"``, ``"triton"`` or ``"reference"``.
        process_group: the loss of the batches of several ranks joined, with DistributedDataParallel: the name
            ``"world"`` (this process alone where torch.distributed is not initialised) or a
            :class:`torch.distributed.ProcessGroup`. See :mod:`softjaccard.losses`.

    Under half precision multiply the loss by a gradient scaler's factor, as usual: the gradient of a mean over many
    pixels underflows float16 otherwise.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> logits = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]])
        >>> loss = TverskyLoss(alpha=0.3, beta=0.7)
        >>> loss(logits, torch.tensor([[0, 1]]))
        tensor(0.0596)
    """

    class_ids: Tensor | None

    def __init__(
        self,
        alpha: float,
        beta: float,
        *,
        form: Form = "metric",
        per: Per | Mapping[Per, float] = "dataset",
        classes: ClassRule | Sequence[int] = "auto",
        class_threshold: float = CLASS_THRESHOLD,
        class_weight: Sequence[float] | Tensor | None = None,
        smooth: float = 1.0,
        log: bool = False,
        gamma: float = 1.0,
        activation: Activation = "softmax",
        temperature: float = 1.0,
        gradient: Gradient = "exact",
        ignore_index: int = -100,
        upsample: Upsample = None,
        align_corners: bool = False,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        process_group: ProcessGroupLike = None,
    ) -> None:
        """See the class."""
        super().__init__(
            class_weight=class_weight,
            activation=activation,
            temperature=temperature,
            gradient=gradient,
            ignore_index=ignore_index,
            upsample=upsample,
            align_corners=align_corners,
            backend=backend,
            process_group=process_group,
        )
        self.alpha = expect_number("alpha", alpha)
        self.beta = expect_number("beta", beta)
        self.form = _expect_option("form", form, get_args(Form))
        self.per = _expect_per(per)
        self.classes = _expect_classes(classes)
        ids = None if isinstance(self.classes, str) else torch.tensor(self.classes)
        self.register_buffer("class_ids", ids, persistent=False)  # on the device before it is needed there
        self.class_threshold = expect_number("class_threshold", class_threshold)
        self.smooth = expect_number("smooth", smooth)
        self.log = log
        self.gamma = expect_number("gamma", gamma, at_least=1.0)
        self.reduction = _expect_option("reduction", reduction, get_args(Reduction))
        if self.reduction == "none" and isinstance(per, Mapping):
            raise ValueError(
                f"per: a mapping of weights has no single table of losses; got {per!r} with reduction='none'"
            )

    @property
    def want(self) -> frozenset[str]:
        """The names of the statistics that this loss needs."""
        needed = {"pixels", "prediction", "label"}
        needed |= {"metric": {"overlap"}, "metric2": {"overlap", "product"}, "product": {"product"}}[self.form]
        if isinstance(self.classes, str) and not (self.classes == "auto" and self.activation == "sigmoid"):
            needed |= _PEAKS[self.classes]
        return frozenset(needed)

    def from_statistics(self, statistics: RegionStatistics) -> Tensor:
        """See :meth:`StatisticsLoss.from_statistics`; with ``reduction="none"`` the losses of the classes."""
        if self.reduction == "mean":
            return self.average(*self.over_ranks(statistics, self.sum_images(statistics)))
        if "dataset" in self.per:
            statistics, _ = self.over_ranks(statistics)
        losses = torch.where(self._active(statistics), self._class_losses(statistics), 0.0)
        return losses[0] if "dataset" in self.per else losses

    def sum_images(self, statistics: RegionStatistics) -> dict[str, Tensor]:
        """What the averages over images have to know of some of them, by the names in ``per``; sums of parts add."""
        sums: dict[str, Tensor] = {}
        for per in self.per:
            if per != "dataset":
                losses = self._class_losses(statistics)
                sums[per] = sum_images(losses, self._active(statistics), per, self.weight_for(losses))
        return sums

    def average(self, total: RegionStatistics, sums: Mapping[str, Tensor]) -> Tensor:
        """The loss from the total of all images and what :meth:`sum_images` knows of them."""
        results = []
        for per, weight in self.per.items():
            if per == "dataset":
                losses = self._class_losses(total)
                value = reduce_classes(losses, self._active(total), per, self.weight_for(losses))
            else:
                value = reduce_sums(sums[per], per, self.class_weight)
            results.append(weight * value)
        return torch.stack(results).sum()

    def _class_losses(self, region: RegionStatistics) -> Tensor:
        """The loss of each image and class, whether active or not, (N, C)."""
        shared = region["product" if self.form == "product" else "overlap"]
        true_positive = region["overlap" if self.form == "metric" else "product"]
        wrong = self.alpha * (region["prediction"] - shared) + self.beta * (region["label"] - shared)
        denominator = true_positive + wrong + self.smooth
        empty = denominator <= _TINY
        denominator = torch.where(empty, 1.0, denominator)
        if self.log:
            losses = -((true_positive + self.smooth) / denominator).clamp(min=_TINY).log()
        else:
            losses = wrong / denominator  # one minus the score, without the cancellation
        losses = torch.where(empty, 0.0, losses)
        return losses if self.gamma == 1 else losses.clamp(min=0) ** self.gamma

    def _active(self, region: RegionStatistics) -> Tensor:
        """Which class of which image enters the mean, boolean (N, C)."""
        images, classes = region["prediction"].shape
        # Not "> 0": the NaN of an invalid pixel has to stay active to be seen.
        counted = ~(region["pixels"].view(images, -1) <= 0).expand(images, classes)
        rule = self.classes
        if rule == "auto":
            rule = "all" if region.soft or region.activation == "sigmoid" else "present"
        if not isinstance(rule, str):
            if max(rule) >= classes:
                raise ValueError(f"classes: expected ids below the number of classes {classes}, got {list(rule)}")
            assert self.class_ids is not None
            ids = torch.arange(classes, device=counted.device)
            return counted & (ids.unsqueeze(1) == self.class_ids).any(1)
        if rule == "all":
            return counted
        active = torch.zeros_like(counted)
        if rule in ("present", "either"):
            active = active | ~(region["label_peak"] <= self.class_threshold)
        if rule in ("predicted", "either"):
            active = active | ~(region["prediction_peak"] <= PREDICTED_THRESHOLD)
        return counted & active

    def extra_repr(self) -> str:
        """The options of the formula."""
        plain = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "training"}
        return ", ".join(f"{name}={value!r}" for name, value in plain.items())


class JaccardLoss(TverskyLoss):
    """One minus the soft Jaccard index (IoU): :class:`TverskyLoss` with alpha = beta = 1, whose options it takes.

    ``form="metric"``, the default, is the Jaccard metric loss JML1, ``"metric2"`` is JML2, ``"product"`` the classic
    soft Jaccard loss (arXiv 2302.05666).

    Example:
        >>> probability = torch.tensor([[[0.5], [0.5]]])
        >>> JaccardLoss(activation=None)(probability, probability)
        tensor(0.)
        >>> JaccardLoss(activation=None, form="product", smooth=0)(probability, probability)
        tensor(0.6667)
    """

    def __init__(self, **options: Unpack[RegionOptions]) -> None:
        """See :class:`TverskyLoss`."""
        super().__init__(1.0, 1.0, **options)


class DiceLoss(TverskyLoss):
    """One minus the soft Dice score: :class:`TverskyLoss` with alpha = beta = 1/2, whose options it takes.

    The metric forms are the Dice semimetric losses (arXiv 2303.16296): 0 only where prediction and label are equal,
    but without the triangle inequality.

    Example:
        >>> DiceLoss(activation=None, smooth=0)(torch.tensor([[[0.0]]]), torch.tensor([[[0.5]]]))
        tensor(1.)
    """

    def __init__(self, **options: Unpack[RegionOptions]) -> None:
        """See :class:`TverskyLoss`."""
        super().__init__(0.5, 0.5, **options)


def tversky_loss(
    logits: Tensor,
    label: LabelLike,
    mask: Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    size: Sequence[int] | None = None,
    **options: Unpack[RegionOptions],
) -> Tensor:
    """The function of :class:`TverskyLoss`: same arguments, same result."""
    return value_of(TverskyLoss(alpha, beta, **options), logits, label, mask, size)


def jaccard_loss(
    logits: Tensor,
    label: LabelLike,
    mask: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    **options: Unpack[RegionOptions],
) -> Tensor:
    """The function of :class:`JaccardLoss`: same arguments, same result.

    Example:
        >>> jaccard_loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]]), smooth=0)
        tensor(0.6667)
    """
    return value_of(JaccardLoss(**options), logits, label, mask, size)


def dice_loss(
    logits: Tensor,
    label: LabelLike,
    mask: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    **options: Unpack[RegionOptions],
) -> Tensor:
    """The function of :class:`DiceLoss`: same arguments, same result."""
    return value_of(DiceLoss(**options), logits, label, mask, size)


def _expect_option(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def _expect_per(per: Any) -> dict[Per, float]:
    """The weights of the ways to average."""
    weights: Mapping[Any, float] = per if isinstance(per, Mapping) else {str(per): 1.0}
    if not weights or any(name not in PER for name in weights):
        raise ValueError(
            f"per: expected one of {', '.join(map(repr, PER))}, or a mapping of these to weights, got {per!r}"
        )
    return {name: expect_number(f"per[{name!r}]", weight) for name, weight in weights.items()}


def _expect_classes(classes: Any) -> str | tuple[int, ...]:
    if isinstance(classes, str):
        if classes in _PEAKS:
            return classes
    elif isinstance(classes, Sequence) and classes and all(isinstance(item, int) and item >= 0 for item in classes):
        return tuple(classes)
    raise ValueError(
        f"classes: expected one of {', '.join(map(repr, _PEAKS))}, or a list of class ids, got {classes!r}"
    )

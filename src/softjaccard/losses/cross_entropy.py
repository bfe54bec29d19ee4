"""Cross-entropy and Kullback-Leibler divergence for labels of any kind, from the same sums as the region losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from softjaccard.labels import LabelLike
from softjaccard.labels.kinds import Activation
from softjaccard.losses.base import StatisticsLoss, value_of
from softjaccard.statistics.distributed import ProcessGroupLike
from softjaccard.statistics.pixels import is_binary
from softjaccard.statistics.region import Backend, RegionStatistics, Upsample

if TYPE_CHECKING:
    from typing_extensions import Unpack


#: What the sum of cross-entropies may be divided by.
DIVISORS: dict[Activation, tuple[str, ...]] = {"softmax": ("label",), "sigmoid": ("pixels",), None: ("label", "pixels")}


class CrossEntropyOptions(TypedDict, total=False):
    """The options of :class:`CrossEntropyLoss` and :class:`KLDivergenceLoss`."""

    class_weight: Sequence[float] | Tensor | None
    activation: Activation
    temperature: float
    ignore_index: int
    upsample: Upsample
    align_corners: bool
    backend: Backend
    process_group: ProcessGroupLike


def mean_over_labels(terms: Tensor, statistics: RegionStatistics, class_weight: Tensor | None) -> Tensor:
    """The weighted mean of sums (B, C) over the pixels: divided by the weighted sum of the label.

    Where each class is a yes or no of its own every pixel has a term for it, so the sum of pixels divides. Nothing
    counted gives 0.
    """
    if is_binary(terms, statistics.activation):
        divisor = statistics["pixels"].view(len(terms), -1).expand_as(terms)
    else:
        divisor = statistics["label"]
    if class_weight is not None:
        terms, divisor = terms * class_weight, divisor * class_weight
    total = divisor.sum()
    return terms.sum() / torch.where(total == 0, 1.0, total)


class CrossEntropyLoss(StatisticsLoss):
    r"""Cross-entropy of the prediction with a label of any kind.

    .. math:: \frac{\sum_c w_c \sum -y_c \log p_c}{\sum_c w_c \sum y_c}

    over the pixels that count. For hard labels this is torch's cross-entropy, with and without class weights; for
    smoothed and float labels it is torch's without class weights (with them torch divides by something else, so that a
    label and the same label written densely differ). Under sigmoid, and for probabilities of a single class, it is the
    binary cross-entropy of every class, divided by the (weighted) number of pixels. Nothing counted gives 0 with zero
    gradients.

    Args:
        class_weight: ``(C,)`` weights of the classes.
        activation: ``"softmax"``; ``"sigmoid"`` for binary and multilabel masks; None: the input is probabilities.
        temperature: divides the logits, and a teacher's unless it has its own.
        ignore_index: the class id of pixels that do not count.
        upsample: ``"bilinear"`` for logits of a lower resolution than the label, which are interpolated inside; see
            :func:`~softjaccard.statistics.region_statistics`.
        align_corners: of the interpolation.
        backend: ``"auto"``, ``"chunked"``, ``"triton"`` or ``"reference"``.
        process_group: the loss of the batches of several ranks joined, with DistributedDataParallel: the name
            ``"world"`` (this process alone where torch.distributed is not initialised) or a
            :class:`torch.distributed.ProcessGroup`. See :mod:`softjaccard.losses`.

    Example:
        >>> logits, label = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]]), torch.tensor([[0, 1]])
        >>> CrossEntropyLoss()(logits, label)
        tensor(0.1269)
        >>> torch.nn.functional.cross_entropy(logits, label)
        tensor(0.1269)
    """

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | Tensor | None = None,
        activation: Activation = "softmax",
        temperature: float = 1.0,
        ignore_index: int = -100,
        upsample: Upsample = None,
        align_corners: bool = False,
        backend: Backend = "auto",
        process_group: ProcessGroupLike = None,
    ) -> None:
        """See the class."""
        super().__init__(
            class_weight=class_weight,
            activation=activation,
            temperature=temperature,
            gradient="exact",
            ignore_index=ignore_index,
            upsample=upsample,
            align_corners=align_corners,
            backend=backend,
            process_group=process_group,
        )

    @property
    def want(self) -> frozenset[str]:
        """The names of the statistics that this loss needs."""
        return frozenset({"cross_entropy", *DIVISORS[self.activation]})

    def from_statistics(self, statistics: RegionStatistics) -> Tensor:
        """See :meth:`StatisticsLoss.from_statistics`."""
        total, _ = self.over_ranks(statistics)
        terms = total["cross_entropy"]
        return mean_over_labels(terms, total, self.weight_for(terms))


class KLDivergenceLoss(CrossEntropyLoss):
    """Kullback-Leibler divergence of the prediction from the label: cross-entropy less the label's entropy.

    Divided like :class:`CrossEntropyLoss`, whose options it takes, and multiplied by the temperature squared, as usual
    in distillation (Hinton et al., arXiv 1503.02531). Without class weights it is 0 with zero gradient where prediction
    and label are equal; with them, as for any weighted cross-entropy, its minimum under softmax lies elsewhere.

    Example:
        >>> from softjaccard import TeacherLabel
        >>> logits = torch.randn(1, 3, 8)
        >>> bool(KLDivergenceLoss(temperature=2.0)(logits, TeacherLabel(logits)).abs() < 1e-6)
        True
    """

    @property
    def want(self) -> frozenset[str]:
        """The names of the statistics that this loss needs."""
        return frozenset({"label_entropy", "cross_entropy", *DIVISORS[self.activation]})

    def from_statistics(self, statistics: RegionStatistics) -> Tensor:
        """See :meth:`StatisticsLoss.from_statistics`."""
        total, _ = self.over_ranks(statistics)
        terms = total["cross_entropy"] - total["label_entropy"]
        return self.temperature**2 * mean_over_labels(terms, total, self.weight_for(terms))


def cross_entropy(
    logits: Tensor,
    label: LabelLike,
    mask: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    **options: Unpack[CrossEntropyOptions],
) -> Tensor:
    """The function of :class:`CrossEntropyLoss`: same arguments, same result."""
    return value_of(CrossEntropyLoss(**options), logits, label, mask, size)


def kl_divergence(
    logits: Tensor,
    label: LabelLike,
    mask: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    **options: Unpack[CrossEntropyOptions],
) -> Tensor:
    """The function of :class:`KLDivergenceLoss`: same arguments, same result."""
    return value_of(KLDivergenceLoss(**options), logits, label, mask, size)

"""The usual mix: a region loss and cross-entropy, in one pass over the pixels; and the sum of any losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softjaccard.labels import LabelLike
from softjaccard.losses.base import StatisticsLoss, expect_number, value_of
from softjaccard.losses.cross_entropy import mean_over_labels
from softjaccard.losses.region import JaccardLoss, TverskyLoss
from softjaccard.statistics.distributed import ProcessGroupLike
from softjaccard.statistics.region import RegionStatistics


class CompoundLoss(StatisticsLoss):
    """A weighted sum of a region loss and cross-entropy, in one pass over the pixels.

    The weights 0.75 and 0.25 are those of the paper's configurations (arXiv 2302.05666).

    Args:
        region: the region loss; its options of the pixel pass, from ``activation`` to ``process_group``, hold for both.
        region_weight: factor of the region loss.
        cross_entropy_weight: factor of the cross-entropy; see :class:`~softjaccard.losses.CrossEntropyLoss`.
        class_weight: ``(C,)`` weights of the classes in the cross-entropy; the region loss has its own.

    Raises:
        TypeError: ``region`` is no region loss.
        ValueError: a weight is negative, or ``region`` does not reduce to a scalar.

    Example:
        >>> import torch
        >>> loss = CompoundLoss(JaccardLoss())
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]]))
        tensor(0.5483)
    """

    def __init__(
        self,
        region: TverskyLoss,
        region_weight: float = 0.75,
        cross_entropy_weight: float = 0.25,
        *,
        class_weight: Sequence[float] | Tensor | None = None,
    ) -> None:
        """See the class."""
        if not isinstance(region, TverskyLoss):
            raise TypeError(f"region: expected JaccardLoss, DiceLoss or TverskyLoss, got {type(region).__name__}")
        if region.reduction != "mean":
            raise ValueError(f"region: expected a loss with reduction='mean', got reduction={region.reduction!r}")
        super().__init__(
            class_weight=class_weight,
            activation=region.activation,
            temperature=region.temperature,
            gradient=region.gradient,
            ignore_index=region.ignore_index,
            upsample=region.upsample,
            align_corners=region.align_corners,
            backend=region.backend,
            process_group=None,
        )
        self.region = region
        self.region_weight = expect_number("region_weight", region_weight)
        self.cross_entropy_weight = expect_number("cross_entropy_weight", cross_entropy_weight)

    @property
    def process_group(self) -> ProcessGroupLike:
        """That of the region loss, which holds for both parts."""
        return self.region.process_group

    @process_group.setter
    def process_group(self, process_group: ProcessGroupLike) -> None:
        self.region.process_group = process_group

    @property
    def want(self) -> frozenset[str]:
        """The names of the statistics that both parts need."""
        return self.region.want | {"cross_entropy"}

    def from_statistics(self, statistics: RegionStatistics) -> Tensor:
        """See :meth:`StatisticsLoss.from_statistics`."""
        total, sums = self.over_ranks(statistics, self.region.sum_images(statistics))
        terms = total["cross_entropy"]
        cross_entropy = mean_over_labels(terms, total, self.weight_for(terms))
        return self.region_weight * self.region.average(total, sums) + self.cross_entropy_weight * cross_entropy

    def extra_repr(self) -> str:
        """The weights."""
        return f"region_weight={self.region_weight}, cross_entropy_weight={self.cross_entropy_weight}"


def compound_loss(
    logits: Tensor,
    label: LabelLike,
    mask: Tensor | None = None,
    *,
    region: TverskyLoss | None = None,
    region_weight: float = 0.75,
    cross_entropy_weight: float = 0.25,
    class_weight: Sequence[float] | Tensor | None = None,
    size: Sequence[int] | None = None,
) -> Tensor:
    """The function of :class:`CompoundLoss`: same arguments, same result; ``region`` defaults to ``JaccardLoss()``."""
    loss = CompoundLoss(region or JaccardLoss(), region_weight, cross_entropy_weight, class_weight=class_weight)
    return value_of(loss, logits, label, mask, size)


class SumLoss(nn.Module):
    """A weighted sum of losses of any library, each with a pass of its own over the pixels.

    For a region loss and cross-entropy, :class:`CompoundLoss` needs one.

    Args:
        losses: modules from logits and a label to a scalar.
        weights: a factor for each.

    Raises:
        TypeError: a loss is no module.
        ValueError: there is no loss, or not a weight of at least 0 for each.

    Example:
        >>> import torch
        >>> loss = SumLoss([JaccardLoss(), torch.nn.CrossEntropyLoss()], [0.75, 0.25])
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]]))
        tensor(0.5483)
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        """See the class."""
        super().__init__()
        for loss in losses:
            if not isinstance(loss, nn.Module):
                raise TypeError(f"losses: expected modules, got {loss!r}")
        if not losses or len(losses) != len(weights):
            raise ValueError(f"weights: expected one for each loss, and a loss, got {len(weights)} for {len(losses)}")
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(expect_number(f"weights[{index}]", weight) for index, weight in enumerate(weights))

    def forward(self, logits: Tensor, label: LabelLike) -> Tensor:
        """The weighted sum, for a label that all losses take.

        Raises:
            ValueError: a loss returns no scalar.
        """
        terms = [weight * loss(logits, label) for weight, loss in zip(self.weights, self.losses, strict=True)]
        for term, loss in zip(terms, self.losses, strict=True):
            if term.ndim:
                raise ValueError(f"losses: expected scalars, got {tuple(term.shape)} of {type(loss).__name__}")
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        """The weights."""
        return f"weights={self.weights}"

"""Scores of probabilities against a distribution, such as the votes of several annotators.

The overlap is that of the metric losses (Wang et al., Jaccard Metric Losses, arXiv 2302.05666, and Dice Semimetric
Losses, arXiv 2303.16296): 1 only where probabilities and label are equal, which the classic product is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softjaccard.labels import LabelLike, RaterLabel, SmoothedLabel, as_label
from softjaccard.labels.checks import describe
from softjaccard.labels.kinds import HardLabel, Label
from softjaccard.metrics.inputs import check_distribution, check_mask, kept_pixels
from softjaccard.metrics.iou import Classes, check_classes, choose_classes
from softjaccard.metrics.table import ImageTable
from softjaccard.statistics.reducer import CLASS_THRESHOLD, PREDICTED_THRESHOLD, Per, reduce_classes
from softjaccard.statistics.region import RegionStatistics, region_statistics

#: The statistics that the scores are made of, all (B, C) but for the pixels, which come last.
_FIELDS = (
    "overlap",
    "prediction",
    "label",
    "prediction_peak",
    "label_peak",
    "cross_entropy",
    "label_entropy",
    "pixels",
)
_PER: dict[str, Per] = {"D": "dataset", "I": "image", "C": "class"}


def soft_scores(statistics: RegionStatistics, *, classes: Classes = None) -> dict[str, Tensor]:
    """The scores of some images from their region statistics.

    With probabilities p and the label's distribution y, the soft IoU of a class is o / (sum p + sum y - o) and its soft
    Dice score 2 o / (sum p + sum y), where o = sum min(p, y); 0 / 0 is 1. On hard labels and predictions they are IoU
    and Dice. One minus them are the losses :class:`~softjaccard.JaccardLoss` and :class:`~softjaccard.DiceLoss` of the
    same ``per`` and ``classes`` with ``smooth=0``.

    - ``mSoftIoU_D``, ``mSoftIoU_I``, ``mSoftIoU_C``: sums over the data set, images, and images of each class, averaged
      as in :func:`fine_grained_iou`; the same for ``SoftDice``;
    - ``SoftIoU_D``: ``(C,)``, the soft IoU of every class over the data set; also ``SoftDice_D``;
    - ``active_D``: boolean ``(C,)``, which classes the scores with D are averaged over;
    - ``TV``: mean over all pixels of the total variation distance, sum over classes of |p - y| / 2, from 0 to 1;
    - ``KL``: mean over all pixels of the Kullback-Leibler divergence of p from y, in nats: the negative log-likelihood
      less what it is at p = y.

    Args:
        statistics: with the fields overlap, prediction, label, prediction_peak, label_peak, cross_entropy,
            label_entropy and pixels.
        classes: which classes count, as in :func:`fine_grained_iou`: ``"present"``, where the label exceeds 0.01 at
            some pixel, ``"predicted"``, where the probability exceeds 1/2, and so on. None: either for D, and present
            for I and C.

    Returns:
        float64; 0 without pixels.

    Raises:
        ValueError: a statistic is missing, or ``classes`` cannot be used.

    Example:
        >>> statistics = region_statistics(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))
        >>> {name: round(soft_scores(statistics)[name].item(), 4) for name in ("mSoftIoU_D", "mSoftDice_D", "TV")}
        {'mSoftIoU_D': 0.3143, 'mSoftDice_D': 0.4667, 'TV': 0.5}
    """
    check_classes(classes, False, statistics["overlap"].shape[1])
    total = statistics.total()
    scores: dict[str, Tensor] = {}
    for letter, per in _PER.items():
        region = total if per == "dataset" else statistics
        rule = ("either" if per == "dataset" else "present") if classes is None else classes
        active = choose_classes(
            region["label_peak"] > CLASS_THRESHOLD,
            region["prediction_peak"] > PREDICTED_THRESHOLD,
            region["pixels"].unsqueeze(1) > 0,
            rule,
        )
        values = _overlap_scores(region)
        scores |= {f"mSoft{family}_{letter}": reduce_classes(each, active, per) for family, each in values.items()}
        if per == "dataset":
            scores |= {f"Soft{family}_D": each[0] for family, each in values.items()} | {"active_D": active[0]}
    prediction, label, overlap, cross_entropy, entropy = (
        total[name].double().sum() for name in ("prediction", "label", "overlap", "cross_entropy", "label_entropy")
    )
    pixels = total["pixels"].double().sum().clamp(min=1)
    # Rounding can take sums of float32 a little below 0.
    scores["TV"] = ((prediction + label - 2 * overlap) / (2 * pixels)).clamp(min=0)
    scores["KL"] = ((cross_entropy - entropy) / pixels).clamp(min=0)
    return scores


def _overlap_scores(region: RegionStatistics) -> dict[str, Tensor]:
    """Soft IoU and Dice of each image and class, float64 (N, C); 0 / 0 is 1, as in losses."""
    overlap, both = region["overlap"].double(), region["prediction"].double() + region["label"].double()

    def ratio(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 1.0)

    return {"IoU": ratio(overlap, both - overlap), "Dice": ratio(2 * overlap, both)}


class SoftScores(ImageTable):
    """Soft IoU and Dice for D, I and C, total variation and KL divergence; see :func:`soft_scores` for their meaning.

    Keeps the sums of every image and class in one table with the images' ids, which is gathered over ranks; it grows by
    images x (7 C + 2) x 8 bytes, and nothing else does.

    Args:
        num_classes: C, at least 2.
        ignore_index: pixels (or votes) with this id do not count.
        classes: as in :func:`soft_scores`.
        from_logits: whether ``update`` gets logits, to which the softmax is applied, instead of probabilities.
        **options: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: ``num_classes`` is less than 2, or ``classes`` cannot be used.

    Example:
        >>> metric = SoftScores(num_classes=2)
        >>> votes = torch.tensor([[[0, 0], [0, 1]]])
        >>> metric.update(torch.tensor([[[1.0, 0.5], [0.0, 0.5]]]), RaterLabel(votes), image_ids=[7])
        >>> metric.compute()["mSoftDice_D"]
        tensor(1., dtype=torch.float64)
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = -100,
        *,
        classes: Classes = None,
        from_logits: bool = False,
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(num_classes, ignore_index, (len(_FIELDS) - 1) * num_classes + 1, **options)
        check_classes(classes, False, num_classes)
        self.classes, self.from_logits = classes, from_logits

    def update(
        self,
        probabilities: Tensor,
        label: LabelLike,
        mask: Tensor | None = None,
        image_ids: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Add the images of a batch.

        Args:
            probabilities: float ``(B, C, *spatial)``; or logits, if ``from_logits``.
            label: a label of any kind that :mod:`softjaccard.labels` has.
            mask: boolean ``(B, *spatial)``; pixels where it is false do not count.
            image_ids: as in :meth:`FineGrainedIoU.update`: of images with the same id only the first counts.

        Raises:
            TypeError: an argument has the wrong dtype, or ``label`` is no label.
            ValueError: shapes differ, or a pixel that counts has values that are not probabilities or an id that is no
                class.
        """
        if not probabilities.is_floating_point():
            raise TypeError(f"probabilities: expected floats (B, C, *spatial), got {describe(probabilities)}")
        if probabilities.ndim < 3 or probabilities.shape[1] != self.num_classes or not probabilities.numel():
            raise ValueError(
                f"probabilities: expected (B, {self.num_classes}, *spatial) with at least one pixel, got "
                f"{describe(probabilities)}"
            )
        fitted = as_label(label, probabilities.shape)
        if not self.from_logits:
            kept = self._counted(fitted, probabilities, mask)
            hint = "of logits, take the softmax or pass from_logits=True"
            check_distribution("probabilities", probabilities, kept, hint)
        elif mask is not None:
            check_mask(mask, _spatial(probabilities))
        statistics = region_statistics(
            probabilities,
            label,
            mask=mask,
            ignore_index=self.ignore_index,
            activation="softmax" if self.from_logits else None,
            want=_FIELDS,
        )
        values = torch.cat([statistics[name].view(len(probabilities), -1) for name in _FIELDS], 1).double()
        if values.isnan().any():
            raise ValueError(
                "probabilities: expected numbers, found NaN; the network may have diverged, or the label holds what is "
                "no class or no distribution (on the CPU the error says what)"
            )
        # As their bits, which no change of the metric's dtype rounds.
        self.add(values.view(torch.int64), image_ids)

    def statistics(self) -> tuple[RegionStatistics, Tensor]:
        """The region statistics in float64, and the ids, int64 ``(N,)``, of the images; see :meth:`images`."""
        bits, ids = self.images()
        return self._as_statistics(bits), ids

    def compute(self) -> dict[str, Tensor]:
        """Return the scores; see :func:`soft_scores`."""
        bits, _ = self.images()
        if not len(bits):
            bits = bits.new_zeros((1, bits.shape[1]))  # an image without pixels, which counts nowhere
        return soft_scores(self._as_statistics(bits), classes=self.classes)

    def _as_statistics(self, bits: Tensor) -> RegionStatistics:
        values = bits.contiguous().view(torch.float64)
        by_class = values[:, :-1].reshape(len(values), len(_FIELDS) - 1, self.num_classes).unbind(1)
        by_name = dict(zip(_FIELDS, (*by_class, values[:, -1]), strict=True))
        return RegionStatistics(**by_name, soft=True, activation="softmax" if self.from_logits else None)

    def _counted(self, label: Label, probabilities: Tensor, mask: Tensor | None) -> Tensor:
        """Boolean (B, *spatial): the pixels that count."""
        ids = label.index if isinstance(label, (HardLabel, SmoothedLabel)) else probabilities
        kept = kept_pixels(ids, _spatial(probabilities), mask, self.ignore_index)
        if isinstance(label, RaterLabel):
            kept = kept & (label.decisive.to(torch.int64) != self.ignore_index).any(1)
        return kept


def _spatial(values: Tensor) -> tuple[int, ...]:
    return (*values.shape[:1], *values.shape[2:])

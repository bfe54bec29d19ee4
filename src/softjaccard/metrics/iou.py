"""Fine-grained intersection over union: pooled over the data set, averaged over images, or over classes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from softjaccard.labels.checks import describe, is_integer
from softjaccard.metrics.inputs import check_ids, check_num_classes, kept_pixels
from softjaccard.statistics.reducer import reduce_classes


def image_counts(
    predictions: Tensor, label: Tensor, num_classes: int, *, mask: Tensor | None = None, ignore_index: int = -100
) -> Tensor:
    """True positives, false positives and false negatives of every image and class, in pixels.

    Args:
        predictions: logits or probabilities, float ``(B, C, *spatial)``, of which the largest counts; or class ids,
            integer ``(B, *spatial)``.
        label: integer class ids ``(B, *spatial)``.
        num_classes: C, at least 2.
        mask: boolean ``(B, *spatial)``; pixels where it is false do not count.
        ignore_index: pixels with this label do not count, whatever is predicted there.

    Returns:
        int64 ``(B, C, 3)``, the last dimension tp, fp, fn.

    Raises:
        TypeError: ``label`` is not integer, or ``mask`` not boolean.
        ValueError: shapes differ, or a pixel that counts has an id that is no class.

    Example:
        >>> image_counts(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2, ignore_index=255)
        tensor([[[1, 0, 1],
                 [0, 1, 0]]])
    """
    check_num_classes(num_classes)
    if not is_integer(label):
        raise TypeError(
            f"label: expected integer class ids (B, *spatial), got {describe(label)}; "
            "IoU needs one class for each pixel, such as label.argmax(1) of a distribution"
        )
    spatial = tuple(label.shape)
    kept = kept_pixels(label, spatial, mask, ignore_index)
    check_ids("label", label, kept, num_classes)
    ids = _predicted_ids(predictions, spatial, num_classes, kept)
    if ids is predictions:
        check_ids("predictions", ids, kept, num_classes)
    # A narrow type makes counting several times faster; ids that overflow it are at pixels that do not count.
    narrow = torch.int16 if num_classes**2 <= torch.iinfo(torch.int16).max else torch.int32
    cells = torch.where(kept, label.to(narrow) * num_classes + ids.to(narrow), num_classes**2)
    matrices = [torch.bincount(image.flatten(), minlength=num_classes**2 + 1)[:-1] for image in cells]
    if not matrices:
        return torch.zeros((0, num_classes, 3), dtype=torch.int64, device=label.device)
    confusion = torch.stack(matrices).reshape(-1, num_classes, num_classes)
    hits = confusion.diagonal(dim1=1, dim2=2)
    return torch.stack((hits, confusion.sum(1) - hits, confusion.sum(2) - hits), -1)


def _predicted_ids(predictions: Tensor, spatial: tuple[int, ...], num_classes: int, kept: Tensor) -> Tensor:
    """The predicted class of every pixel, (B, *spatial)."""
    scores = (*spatial[:1], num_classes, *spatial[1:])
    if is_integer(predictions) and tuple(predictions.shape) == spatial:
        return predictions
    if predictions.is_floating_point() and tuple(predictions.shape) == scores:
        largest, ids = predictions.max(1)
        if bool((largest.isnan() & kept).any()):
            raise ValueError("predictions: expected numbers, found NaN; the network's output may have diverged")
        return ids
    raise ValueError(
        f"predictions: expected floats of shape (B, C, *spatial) = {scores} or integers of shape (B, *spatial) = "
        f"{spatial} for this label, got {describe(predictions)}"
    )


def fine_grained_iou(counts: Tensor) -> dict[str, Tensor]:
    """Averages of IoU = tp / (tp + fp + fn) from a table of counts, after Wang et al., arXiv 2310.19252.

    Args:
        counts: ``(N, C, 3)``, tp, fp and fn of every image and class, as from :func:`image_counts`.

    Returns:
        Fractions in float64:

        - ``mIoU_D``: counts summed over the data set, IoU of each class, mean over the classes that are predicted or
          labelled anywhere (as torchmetrics does);
        - ``mIoU_I``: mean over an image's classes, those present in its label, then over images;
        - ``mIoU_C``: mean over the images whose label has the class, then over classes;
        - ``IoU_D``: ``(C,)``, the terms of mIoU_D, and ``active_D``: boolean ``(C,)``, which of them count; IoU_D is 0
          where none is predicted or labelled.

        A mean of nothing is 0.

    Example:
        >>> scores = fine_grained_iou(torch.tensor([[[8, 0, 2], [0, 2, 0], [0, 0, 0]]]))
        >>> scores["mIoU_D"].item(), scores["mIoU_I"].item(), scores["active_D"].tolist()
        (0.4, 0.8, [True, True, False])
    """
    if not len(counts):
        counts = counts.new_zeros((1, *counts.shape[1:]))  # an image without pixels counts nowhere
    total = counts.sum(0, keepdim=True)
    active = total.sum(-1) > 0
    present = counts[..., 0] + counts[..., 2] > 0
    pooled, by_image = _iou(total), _iou(counts)
    return {
        "mIoU_D": reduce_classes(pooled, active, "dataset"),
        "mIoU_I": reduce_classes(by_image, present, "image"),
        "mIoU_C": reduce_classes(by_image, present, "class"),
        "IoU_D": pooled[0],
        "active_D": active[0],
    }


def _iou(counts: Tensor) -> Tensor:
    return counts[..., 0].double() / counts.sum(-1).clamp(min=1)


class FineGrainedIoU(Metric):
    """mIoU^D, mIoU^I and mIoU^C; see :func:`fine_grained_iou` for their meaning.

    Keeps tp, fp and fn of every image and class in one int64 table, which is gathered over ranks; nothing else grows.

    Args:
        num_classes: C, at least 2.
        ignore_index: pixels with this label do not count.
        **options: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: ``num_classes`` is less than 2.

    Example:
        >>> metric = FineGrainedIoU(num_classes=2, ignore_index=255)
        >>> metric.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 255]]))
        >>> metric.update(torch.tensor([[1, 1]]), torch.tensor([[1, 1]]))
        >>> {name: round(metric.compute()[name].item(), 3) for name in ("mIoU_D", "mIoU_I", "mIoU_C")}
        {'mIoU_D': 0.667, 'mIoU_I': 0.833, 'mIoU_C': 0.833}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: list[Tensor] | Tensor

    def __init__(self, num_classes: int, ignore_index: int = -100, **options: Any) -> None:
        """See the class."""
        super().__init__(**options)
        check_num_classes(num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, label: Tensor, mask: Tensor | None = None) -> None:
        """Add the images of a batch; arguments as in :func:`image_counts`."""
        counts = image_counts(predictions, label, self.num_classes, mask=mask, ignore_index=self.ignore_index)
        cast(list[Tensor], self.counts).append(counts)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores; see :func:`fine_grained_iou`."""
        return fine_grained_iou(self.table)

    @property
    def table(self) -> Tensor:
        """int64 (images, C, 3): tp, fp, fn of the images that this rank has seen, or of all after a sync."""
        return dim_zero_cat(self.counts) if len(self.counts) else self._no_images()

    def sync(self, *arguments: Any, **options: Any) -> None:
        """Gather the tables of all ranks; one without images takes part with an empty table of the right shape."""
        if isinstance(self.counts, list) and not self.counts:
            self.counts.append(self._no_images())
        super().sync(*arguments, **options)

    def _no_images(self) -> Tensor:
        return torch.zeros((0, self.num_classes, 3), dtype=torch.int64, device=self.device)

"""Boundary IoU: the overlap of masks close to their contours, which large objects' insides do not outweigh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softjaccard.labels.boundaries import local_extremum
from softjaccard.metrics.counts import class_maps, image_counts
from softjaccard.metrics.inputs import check_ids, kept_pixels
from softjaccard.metrics.iou import fine_grained_iou
from softjaccard.metrics.table import CountsTable


def boundary_counts(
    predictions: Tensor,
    label: Tensor,
    num_classes: int,
    width: int,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Pixels in the boundary bands of each class of both prediction and label (tp), or of only one of them (fp, fn).

    The band of a class are its pixels from which a pixel of another class is at most ``width`` pixels away along each
    axis: what erosion with a cube of 2 ``width`` + 1 pixels a side takes off its mask. Cheng et al., Boundary IoU, CVPR
    2021, arXiv 2103.16562, with one difference: ignored pixels, and those beyond the image's border, are in no band and
    make no contour, in the prediction as in the label, so that padding an image changes nothing. (There the border of
    the image is a contour.)

    Args:
        predictions: logits or probabilities, float ``(B, C, *spatial)``, or class ids, integer ``(B, *spatial)``.
        label: integer class ids ``(B, *spatial)``, any number of spatial dimensions.
        num_classes: C, at least 2.
        width: of the bands, in pixels, at least 1.
        mask: boolean ``(B, *spatial)``; where it is false a pixel is ignored.
        ignore_index: pixels with this label are ignored.

    Returns:
        int64 ``(B, C, 3)``, the last dimension tp, fp, fn.

    Raises:
        TypeError: ``label`` is not integer, or ``mask`` not boolean.
        ValueError: shapes differ, ``width`` is less than 1, or a pixel that counts has an id that is no class.

    Example:
        >>> label = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
        >>> boundary_counts(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]), label, 2, width=2)
        tensor([[[1, 1, 1],
                 [1, 1, 1]]])
    """
    _check_width(width)
    ids, label = class_maps(predictions, label, num_classes, mask=mask, ignore_index=ignore_index)
    if label.ndim < 2:
        raise ValueError(
            f"label: expected at least one spatial dimension, (B, *spatial), got shape {tuple(label.shape)}"
        )
    kept = kept_pixels(label, tuple(label.shape), None, ignore_index)
    check_ids("label", label, kept, num_classes)
    check_ids("predictions", ids, kept, num_classes)
    # Pixels outside the bands get a class of their own, which is then left out.
    ids, label = (torch.where(_bands(classes, kept, width), classes.long(), num_classes) for classes in (ids, label))
    # The mask has the ignored pixels; their id could be that very class.
    return image_counts(ids, label, num_classes + 1, mask=kept)[:, :num_classes]


def _bands(classes: Tensor, kept: Tensor, width: int) -> Tensor:
    """Pixels with a kept pixel of another class in their window: there largest and smallest id differ."""
    if not classes.numel():
        return kept
    ids, least, most = classes.to(torch.int32), -1, torch.iinfo(torch.int32).max
    largest = local_extremum(torch.where(kept, ids, least), 2 * width + 1)
    smallest = local_extremum(torch.where(kept, ids, most), 2 * width + 1, torch.minimum)
    return kept & (largest != smallest)


def _check_width(width: int) -> None:
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width: expected a whole number of pixels of at least 1, got {width!r}")


class BoundaryIoU(CountsTable):
    """IoU of the boundary bands of prediction and label; see :func:`boundary_counts` for the bands.

    Scores, with the width of the bands in pixels in their names: ``BoundaryIoU_D_3px``, the pixels of the whole data
    set by class, then the mean over the classes with a band in prediction or label; ``BoundaryIoU_I_3px``, the mean
    over an image's classes that have a band in the label, then over images with any; and ``BoundaryIoU_active_D_3px``,
    boolean ``(C,)``, the classes that the first is averaged over. A mean of nothing is 0.

    Keeps a table like that of :class:`FineGrainedIoU`.

    Args:
        num_classes: C, at least 2.
        width: of the bands, in pixels, at least 1. The authors take 2 % of the image's diagonal.
        ignore_index: pixels with this label are ignored.
        **options: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: ``num_classes`` or ``width`` is too small.

    Example:
        >>> metric = BoundaryIoU(num_classes=2, width=2)
        >>> metric.update(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]))
        >>> round(metric.compute()["BoundaryIoU_D_2px"].item(), 3)
        0.333
    """

    def __init__(self, num_classes: int, width: int, ignore_index: int = -100, **options: Any) -> None:
        """See the class."""
        super().__init__(num_classes, ignore_index, **options)
        _check_width(width)
        self.width = width

    def counts(self, predictions: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
        """See :func:`boundary_counts`."""
        return boundary_counts(
            predictions, label, self.num_classes, self.width, mask=mask, ignore_index=self.ignore_index
        )

    def compute(self) -> dict[str, Tensor]:
        """Return the scores; see the class."""
        scores = fine_grained_iou(self.table()[0])
        names = {"BoundaryIoU_D": "mIoU_D", "BoundaryIoU_I": "mIoU_I", "BoundaryIoU_active_D": "active_D"}
        return {f"{name}_{self.width}px": scores[of] for name, of in names.items()}

"""Calibration: does a network's confidence say how often it is right?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from softjaccard.labels.checks import describe, is_integer
from softjaccard.metrics.inputs import at_least_single, check_distribution, check_ids, check_num_classes, kept_pixels


def calibration_sums(
    probabilities: Tensor, label: Tensor, bins: int = 10, *, mask: Tensor | None = None, ignore_index: int = -100
) -> Tensor:
    """Pixels, their summed confidence and their summed hits, in bins of equal width of the confidence.

    The confidence of a pixel is its largest probability. It is a hit if that class is the pixel's label; under a soft
    label its hit is the label's probability of that class. Bin i holds confidences in [i / bins, (i + 1) / bins), and
    the last one 1, too.

    Args:
        probabilities: float ``(B, C, *spatial)`` with C >= 2.
        label: integer class ids ``(B, *spatial)``, or a float distribution over classes ``(B, C, *spatial)``.
        bins: number of bins.
        mask: boolean ``(B, *spatial)``; pixels where it is false do not count.
        ignore_index: pixels with this hard label do not count.

    Returns:
        float64 ``(3, bins)``: pixels, confidence, hits.

    Raises:
        TypeError: ``probabilities`` is not float, or ``mask`` not boolean.
        ValueError: shapes differ, or a pixel that counts has values that are not probabilities or an id that is no
            class.

    Example:
        >>> sums = calibration_sums(torch.tensor([[[0.8, 0.6], [0.2, 0.4]]]), torch.tensor([[0, 1]]), bins=2)
        >>> sums[0], sums[2]
        (tensor([0., 2.], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """
    if not probabilities.is_floating_point():
        raise TypeError(f"probabilities: expected floats (B, C, *spatial), got {describe(probabilities)}")
    if probabilities.ndim < 2:
        raise ValueError(f"probabilities: expected (B, C, *spatial), got {describe(probabilities)}")
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    num_classes = probabilities.shape[1]
    check_num_classes(num_classes)
    spatial = (*probabilities.shape[:1], *probabilities.shape[2:])
    expected = spatial if is_integer(label) else tuple(probabilities.shape)
    if tuple(label.shape) != expected:
        raise ValueError(
            f"label: expected integers of shape (B, *spatial) = {spatial} or floats of shape (B, C, *spatial) = "
            f"{tuple(probabilities.shape)} for these probabilities, got {describe(label)}"
        )
    kept = kept_pixels(label, spatial, mask, ignore_index)
    check_distribution("probabilities", probabilities, kept, "of logits, take the softmax or pass from_logits=True")
    confidence, predicted = probabilities.max(1)
    if is_integer(label):
        check_ids("label", label, kept, num_classes)
        hits = predicted == label
    else:
        check_distribution("label", label, kept, "leave pixels without a label out with mask")
        hits = label.gather(1, predicted.unsqueeze(1)).squeeze(1)
    confidence = at_least_single(confidence[kept])
    inner_edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)[1:-1]
    index = torch.bucketize(confidence, inner_edges, right=True)
    values = (torch.ones_like(index), confidence, hits[kept])
    return torch.stack([torch.bincount(index, weights=value.double(), minlength=bins) for value in values])


def calibration_error(sums: Tensor) -> dict[str, Tensor]:
    """Expected calibration error from sums in bins.

    ECE = sum over bins of (share of the pixels) * |mean confidence - mean hits| (Naeini et al., AAAI 2015).

    Args:
        sums: ``(3, bins)``: pixels, confidence, hits, as from :func:`calibration_sums`.

    Returns:
        ``ECE``, a fraction; 0 without pixels.

    Example:
        >>> calibration_error(torch.tensor([[0.0, 2.0], [0.0, 1.4], [0.0, 1.0]]))
        {'ECE': tensor(0.2000)}
    """
    pixels, confidence, hits = sums
    return {"ECE": (confidence - hits).abs().sum() / pixels.sum().clamp(min=1)}


class CalibrationError(Metric):
    """Expected calibration error of the most probable class, in constant memory; see :func:`calibration_error`.

    Args:
        num_classes: C, at least 2.
        bins: number of bins of equal width.
        ignore_index: pixels with this hard label do not count.
        from_logits: whether ``update`` gets logits, to which the softmax is applied, instead of probabilities.
        **options: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: ``num_classes`` or ``bins`` is too small.

    Example:
        >>> metric = CalibrationError(num_classes=2)
        >>> metric.update(torch.tensor([[[0.75, 0.75], [0.25, 0.25]]]), torch.tensor([[0, 1]]))
        >>> metric.compute()
        {'ECE': tensor(0.2500, dtype=torch.float64)}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    sums: Tensor

    def __init__(
        self, num_classes: int, bins: int = 10, *, ignore_index: int = -100, from_logits: bool = False, **options: Any
    ) -> None:
        """See the class."""
        super().__init__(**options)
        check_num_classes(num_classes)
        if bins < 1:
            raise ValueError(f"bins: expected at least 1, got {bins}")
        self.num_classes, self.bins, self.ignore_index, self.from_logits = num_classes, bins, ignore_index, from_logits
        self.add_state("sums", default=torch.zeros(3, bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, label: Tensor, mask: Tensor | None = None) -> None:
        """Add the pixels of a batch; arguments as in :func:`calibration_sums`, or logits if ``from_logits``."""
        if probabilities.ndim < 2 or probabilities.shape[1] != self.num_classes:
            raise ValueError(
                f"probabilities: expected shape (B, {self.num_classes}, *spatial), got {describe(probabilities)}"
            )
        if self.from_logits:
            probabilities = torch.softmax(at_least_single(probabilities), 1)
        self.sums += calibration_sums(probabilities, label, self.bins, mask=mask, ignore_index=self.ignore_index)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores; see :func:`calibration_error`."""
        return calibration_error(self.sums)

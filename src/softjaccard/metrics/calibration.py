"""Calibration: does a network's confidence say how often it is right?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from softjaccard.labels import LabelLike
from softjaccard.labels.checks import describe
from softjaccard.metrics.confidence import FINE_BINS, CalibrationSums, calibration_sums, check_bins
from softjaccard.metrics.inputs import check_num_classes

#: The names of the scores, in the order of the last axis of :attr:`CalibrationError.images`.
CALIBRATION_SCORES = ("ECE", "MCE", "SCE", "SCE_argmax", "ACE", "Brier", "NLL")


def calibration_scores(sums: CalibrationSums, *, present_only: bool = False) -> dict[str, Tensor]:
    """Calibration errors, Brier score and negative log-likelihood of the pixels of one region.

    Args:
        sums: of one region, as from :func:`calibration_sums`.
        present_only: whether SCE and ACE average over the classes that the label has, and not over all.

    Returns:
        float64 scalars, 0 without pixels. All but NLL are fractions.

        - ``ECE``: sum over bins of (share of the pixels) * |mean confidence - mean hits| of the most probable class
          (Naeini et al., AAAI 2015);
        - ``MCE``: the largest |mean confidence - mean hits| of a bin that has pixels (ibid.);
        - ``SCE``: as ECE, but of each class at all pixels, then averaged over classes; hits of class k are the pixels
          with label k (static calibration error of Nixon et al., CVPR workshops 2019);
        - ``SCE_argmax``: the variant of the code of Jaccard Metric Losses (arXiv 2302.05666): hits of class k are the
          pixels with label k where k is predicted, too. It is not 0 for a calibrated network;
        - ``ACE``: as SCE, with bins that hold equally many pixels (adaptive calibration error, ibid.). Approximate:
          these bins are cut from ``bins * 20`` fine ones of equal width as if the pixels of a fine bin were all alike;
          over- and under-confidence that cancel out within a fine bin are missed, which matters where most pixels of
          a class lie in the first or last one. Within 0.0005 of exact ACE on simulated networks (see the tests);
        - ``Brier``: mean over pixels of the sum over classes of (probability - label)^2;
        - ``NLL``: mean over pixels of -log of the label's probability, in nats; cross-entropy for a soft label. Given
          as probabilities, none counts as smaller than 1e-12.

    Example:
        >>> sums = calibration_sums(torch.tensor([[[0.75, 0.75], [0.25, 0.25]]]), torch.tensor([[0, 1]]))
        >>> {name: round(score.item(), 4) for name, score in calibration_scores(sums.at(0, 0)).items()}
        {'ECE': 0.25, 'MCE': 0.25, 'SCE': 0.25, 'SCE_argmax': 0.25, 'ACE': 0.25, 'Brier': 0.625, 'NLL': 0.837}
    """
    pixels, confidence, hits, argmax_hits = in_bins(sums.cells)
    total = pixels[0].sum().clamp(min=1)
    present = hits.sum(1) > 0 if present_only else torch.ones_like(hits[:, 0], dtype=torch.bool)

    def over_classes(gaps: Tensor) -> Tensor:
        """The mean over classes of the sum over bins of |gaps|; ``gaps`` (C + 1, bins)."""
        errors = gaps.abs().sum(1) / total
        return torch.where(present, errors, 0.0)[1:].sum() / present[1:].sum().clamp(min=1)

    gaps = confidence - hits
    squares, logs = sums.losses / total
    scores = (
        gaps[0].abs().sum() / total,
        (gaps[0].abs() / pixels[0].clamp(min=1)).amax(),
        over_classes(gaps),
        over_classes(confidence - argmax_hits),
        over_classes(_equal_mass_gaps(sums.cells)),
        squares,
        logs,
    )
    return dict(zip(CALIBRATION_SCORES, scores, strict=True))


def in_bins(cells: Tensor) -> Tensor:
    """``(..., bins)`` from cells ``(..., bins * FINE_BINS)``."""
    coarse: Tensor = cells.view(*cells.shape[:-1], -1, FINE_BINS).sum(-1)
    return coarse


def _equal_mass_gaps(cells: Tensor) -> Tensor:
    """Confidence less hits ``(C + 1, bins)`` in bins that hold equally many pixels, cut from the fine ones."""
    rows, fine = cells.shape[1:]
    start = cells.new_zeros((3, rows, 1))
    pixels, confidence, hits = torch.cat((start, cells[:3].cumsum(-1)), -1)
    bins = fine // FINE_BINS
    edges = pixels[:, -1:] * torch.linspace(0, 1, bins + 1, dtype=cells.dtype, device=cells.device)
    # The fine bin in which an edge lies, and how much of it is below the edge.
    number = torch.searchsorted(pixels, edges, right=True).clamp(1, fine)
    left, right = pixels.gather(1, number - 1), pixels.gather(1, number)
    part = ((edges - left) / (right - left).clamp(min=1)).clamp(0, 1)
    gaps = confidence - hits
    at_edges = gaps.gather(1, number - 1).lerp(gaps.gather(1, number), part)
    return torch.diff(at_edges, dim=1)


class CalibrationError(Metric):
    """Calibration errors, Brier score and negative log-likelihood; see :func:`calibration_scores` for their meaning.

    Its memory is constant: sums in bins for the most probable class and for every class, 640 * (C + 1) bytes for each
    bin. Only with ``per_image`` a table grows, by the scores of each image.

    The plain names, such as ``ECE``, are scores of all pixels together. ``per_image`` adds means over images, such as
    ``ECE_I``: each image has its own score, with SCE and ACE over the classes in its label only, and
    images without pixels that count are left out. ``boundary_kernel_size`` adds all scores once more for the band
    that :func:`softjaccard.boundary` marks and for the rest. The band's width is in the name, both sides of the edge
    together: ``ECE_boundary_2px`` and ``ECE_interior_2px`` for a kernel size of 3. Under a soft label the band is that
    of its most probable class.

    Args:
        num_classes: C, at least 2.
        bins: number of bins; of equal width, but for ACE.
        ignore_index: pixels (or votes) with this id do not count.
        from_logits: whether ``update`` gets logits, to which the softmax is applied, instead of probabilities.
        per_image: whether to keep the scores of each image.
        boundary_kernel_size: odd, at least 3, to tell the boundary from the interior.
        **options: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> metric = CalibrationError(num_classes=2)
        >>> metric.update(torch.tensor([[[0.75, 0.75], [0.25, 0.25]]]), torch.tensor([[0, 1]]))
        >>> metric.compute()["ECE"]
        tensor(0.2500, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    cells: Tensor
    losses: Tensor
    image_rows: list[Tensor] | Tensor

    def __init__(
        self,
        num_classes: int,
        bins: int = 10,
        *,
        ignore_index: int = -100,
        from_logits: bool = False,
        per_image: bool = False,
        boundary_kernel_size: int | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(**options)
        check_num_classes(num_classes)
        check_bins(bins)
        if boundary_kernel_size is not None and (boundary_kernel_size < 3 or boundary_kernel_size % 2 == 0):
            raise ValueError(
                f"boundary_kernel_size: expected an odd number of pixels such as 3 or 5, got {boundary_kernel_size}"
            )
        self.num_classes, self.bins, self.ignore_index, self.from_logits = num_classes, bins, ignore_index, from_logits
        self.per_image, self.boundary_kernel_size = per_image, boundary_kernel_size
        regions = 1 if boundary_kernel_size is None else 2
        cells = torch.zeros(regions, 4, num_classes + 1, bins * FINE_BINS, dtype=torch.float64)
        self.add_state("cells", default=cells, dist_reduce_fx="sum")
        self.add_state("losses", default=torch.zeros(regions, 2, dtype=torch.float64), dist_reduce_fx="sum")
        if per_image:
            self.add_state("image_rows", default=[], dist_reduce_fx="cat")

    def _apply(self, fn: Callable[[Tensor], Tensor], *arguments: Any, **options: Any) -> Module:
        """Move to another device; the sums stay float64 in networks of half precision."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), *arguments, **options)

    def update(self, probabilities: Tensor, label: LabelLike, mask: Tensor | None = None) -> None:
        """Add the images of a batch; arguments as in :func:`calibration_sums`, or logits if ``from_logits``."""
        if probabilities.ndim < 2 or probabilities.shape[1] != self.num_classes:
            raise ValueError(
                f"probabilities: expected shape (B, {self.num_classes}, *spatial), got {describe(probabilities)}"
            )
        self._add(
            calibration_sums(
                probabilities,
                label,
                self.bins,
                mask=mask,
                ignore_index=self.ignore_index,
                from_logits=self.from_logits,
                boundary_kernel_size=self.boundary_kernel_size,
                per_image=self.per_image,
            )
        )

    def compute(self) -> dict[str, Tensor]:
        """Return the scores; see the class."""
        regions = self._regions(CalibrationSums(self.cells, self.losses))
        scores = {
            name + region: score for region, sums in regions.items() for name, score in calibration_scores(sums).items()
        }
        if self.per_image:
            pixels, *columns = self.images.unbind(-1)
            for name, column in zip(CALIBRATION_SCORES, columns, strict=True):
                means = column.sum(0) / (pixels > 0).sum(0).clamp(min=1)
                scores |= {f"{name}_I{region}": mean for region, mean in zip(regions, means, strict=True)}
        return scores

    def reliability(self) -> Tensor:
        """Return float64 ``(3, C + 1, bins)``: pixels, summed confidence and summed hits, for a reliability diagram.

        The first row is that of the most probable class, the others are those of each class. Of all pixels that this
        rank has seen; inside ``with metric.sync_context():`` of those of all ranks.
        """
        return in_bins(self.cells.sum(0)[:3])

    @property
    def images(self) -> Tensor:
        """float64 (images, regions, 1 + scores) of the images of this rank, or of all after a sync.

        Empty unless ``per_image``. Regions: all, and if asked for the boundary and the interior. The last axis holds
        the number of pixels and the scores in the order of ``CALIBRATION_SCORES``, 0 where there is no pixel.
        """
        return dim_zero_cat(self.image_rows) if self.per_image and len(self.image_rows) else self._no_images()

    def sync(self, *arguments: Any, **options: Any) -> None:
        """Gather the states of all ranks; one without images takes part with an empty table of the right shape."""
        if self.per_image and isinstance(self.image_rows, list) and not self.image_rows:
            self.image_rows.append(self._no_images())
        super().sync(*arguments, **options)

    def _add(self, sums: CalibrationSums) -> None:
        """Add the sums of a batch, those of each image apart if ``per_image``."""
        if self.per_image and len(sums.cells):
            rows = torch.stack([self._row(sums.at(image)) for image in range(len(sums.cells))])
            cast(list[Tensor], self.image_rows).append(rows)
        batch = sums.over(0)
        self.cells += batch.cells
        self.losses += batch.losses

    def _no_images(self) -> Tensor:
        regions = 1 if self.boundary_kernel_size is None else 3
        return torch.zeros((0, regions, 1 + len(CALIBRATION_SCORES)), dtype=torch.float64, device=self.device)

    def _row(self, sums: CalibrationSums) -> Tensor:
        """(regions, 1 + scores) of one image."""
        return torch.stack(
            [
                torch.stack((one.cells[0, 0].sum(), *calibration_scores(one, present_only=True).values()))
                for one in self._regions(sums).values()
            ]
        )

    def _regions(self, sums: CalibrationSums) -> dict[str, CalibrationSums]:
        """The sums of each region, by what is put behind the names of its scores."""
        regions = {"": sums.over(0)}
        if self.boundary_kernel_size is not None:
            width = self.boundary_kernel_size - 1
            regions |= {f"_boundary_{width}px": sums.at(1), f"_interior_{width}px": sums.at(0)}
        return regions

"""What calibration needs to know of the pixels, as sums in bins of the confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softjaccard.labels import LabelLike, as_label, boundary
from softjaccard.labels.checks import ValueCheck, describe
from softjaccard.labels.kinds import HardLabel, Label, LabelOptions, class_ids
from softjaccard.metrics.inputs import at_least_single, check_distribution, check_mask, check_num_classes
from softjaccard.statistics.pixels import SMALLEST_PROBABILITY, Options
from softjaccard.statistics.tiles import Tile, Tiles, Workspace

#: Each bin is kept as so many finer ones, from which bins of equal mass can be made.
FINE_BINS = 20


class CalibrationSums(NamedTuple):
    """Sums over pixels, which add over images, regions and devices: these may be further axes before the others."""

    cells: Tensor
    """float64 ``(..., 4, C + 1, bins * FINE_BINS)``.

    Axis -3: pixels, their summed confidence, their summed hits, and of these those whose class is the predicted one.
    Axis -2: the most probable class, then each class. Axis -1: fine bins of equal width of the confidence.
    """
    losses: Tensor
    """float64 ``(..., 2)``: (probability - label)^2 summed over classes, and -log of the label's probability."""

    def over(self, axis: int) -> CalibrationSums:
        """The sums over a further axis, such as that of the images."""
        return CalibrationSums(self.cells.sum(axis), self.losses.sum(axis))

    def at(self, *position: int | slice) -> CalibrationSums:
        """The sums at a position of the further axes."""
        return CalibrationSums(self.cells[position], self.losses[position])


@dataclass(frozen=True)
class _Options:
    bins: int
    ignore_index: int
    from_logits: bool
    regions: int
    per_image: bool


def calibration_sums(
    probabilities: Tensor,
    label: LabelLike,
    bins: int = 10,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    from_logits: bool = False,
    boundary_kernel_size: int | None = None,
    per_image: bool = False,
) -> CalibrationSums:
    """Pixels, confidence, hits and losses of a batch, computed a tile of pixels at a time.

    Every class of a pixel has its probability as the confidence, and the label's probability of the class as the hit,
    which is 0 or 1 for hard labels. The most probable class of a pixel is counted once more in a row of its own. With
    n fine bins, a confidence c is in bin floor(c n), computed in its own dtype; 1 is in the last bin.

    Args:
        probabilities: float ``(B, C, *spatial)`` with C >= 2; or logits, if ``from_logits``.
        label: a label of any kind that :mod:`softjaccard.labels` has: integer class ids ``(B, *spatial)``, a float
            distribution ``(B, C, *spatial)``, :class:`~softjaccard.RaterLabel` and so on.
        bins: number of bins that scores will be computed from; each is stored as ``FINE_BINS`` finer ones.
        mask: boolean ``(B, *spatial)``; pixels where it is false do not count.
        ignore_index: pixels (or votes) with this id do not count.
        from_logits: whether the softmax has to be taken first.
        boundary_kernel_size: None for one region; else there are two, the pixels off and in the band that
            :func:`softjaccard.boundary` marks with this kernel size, for soft labels that of their most probable class.

        per_image: whether to keep the images apart.

    Returns:
        Sums with the further axes ``(B, regions)``, or ``(1, regions)`` unless ``per_image``.

    Raises:
        TypeError: ``probabilities`` is not float, ``mask`` not boolean, or ``label`` no label.
        ValueError: shapes differ, or a pixel that counts has values that are not probabilities or an id that is no
            class.

    Example:
        >>> probabilities, label = torch.tensor([[[0.8, 0.6], [0.2, 0.4]]]), torch.tensor([[0, 1]])
        >>> pixels, confidence, hits, _ = calibration_sums(probabilities, label, bins=2).cells[0, 0, :, 0]
        >>> pixels.sum().item(), round(confidence.sum().item(), 4), hits.sum().item()
        (2.0, 1.4, 1.0)
    """
    if not probabilities.is_floating_point():
        raise TypeError(f"probabilities: expected floats (B, C, *spatial), got {describe(probabilities)}")
    if probabilities.ndim < 3:
        raise ValueError(
            f"probabilities: expected (B, C, *spatial) with at least one spatial dimension, got "
            f"{describe(probabilities)}"
        )
    check_bins(bins)
    check_num_classes(probabilities.shape[1])
    fitted = as_label(label, probabilities.shape)
    if mask is not None:
        check_mask(mask, (*probabilities.shape[:1], *probabilities.shape[2:]))
    options = _Options(bins, ignore_index, from_logits, 1 if boundary_kernel_size is None else 2, per_image)
    sums = _TileSums(probabilities, options).result()
    if probabilities.numel() == 0:
        return sums
    band = None if boundary_kernel_size is None else _band(fitted, probabilities, mask, options, boundary_kernel_size)
    tiles = Tiles(probabilities, Options())

    def work(tile: Tile, _: Workspace) -> CalibrationSums:
        def cut(tensor: Tensor) -> Tensor:
            return tiles.cut(tensor, tile)

        values = cut(probabilities)
        selected, at_boundary = (None if each is None else cut(each).unsqueeze(1) for each in (mask, band))
        part = _TileSums(values, options)
        part.add(values, fitted.map(cut), selected, at_boundary)
        return part.result()

    for tile, part in tiles.for_each(work):
        images = tile[0] if per_image else slice(None)
        sums.cells[images] += part.cells
        sums.losses[images] += part.losses
    return sums


def check_bins(bins: int) -> None:
    """Raise a ValueError unless there is a bin."""
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")


def _band(label: Label, values: Tensor, mask: Tensor | None, options: _Options, kernel_size: int) -> Tensor:
    """Boolean (B, *spatial): where the label's most probable class changes; not next to pixels that do not count."""

    def of_image(number: int) -> Tensor:
        def select(tensor: Tensor) -> Tensor:
            return tensor[number : number + 1]

        selected = None if mask is None else select(mask).unsqueeze(1)
        ids, counted = _resolve(label.map(select), select(values), selected, options)
        if not isinstance(label, HardLabel):
            ids = ids.argmax(1, keepdim=True)
        for each in (selected, counted):
            ids = ids if each is None else torch.where(each, ids, -1)
        return boundary(ids.squeeze(1), kernel_size, ignore_index=-1)

    return torch.cat([of_image(number) for number in range(len(values))])


def _resolve(label: Label, values: Tensor, selected: Tensor | None, options: _Options) -> tuple[Tensor, Tensor | None]:
    """Of a hard label the ids (b, 1, ...), else the distribution (b, C, ...); and the pixels that have a label."""
    check = ValueCheck(raises=True)
    if isinstance(label, HardLabel):
        return class_ids(label.index.unsqueeze(1), values.shape[1], options.ignore_index, selected, check)
    dtype = torch.promote_types(values.dtype, torch.float32)
    return label.resolve(values.shape, dtype, LabelOptions(options.ignore_index), selected, check)


class _TileSums:
    """The sums of a tile; pixels that do not count go to a region behind the others, which is dropped."""

    def __init__(self, values: Tensor, options: _Options) -> None:
        self.options = options
        self.fine = options.bins * FINE_BINS
        self.rows = values.shape[1] + 1
        self.images = len(values) if options.per_image else 1
        regions = self.images * (options.regions + 1)
        like: dict[str, Any] = {"dtype": torch.float64, "device": values.device}
        self.cells = torch.zeros((4, regions * self.rows * self.fine), **like)
        self.losses = torch.zeros((2, regions), **like)

    def result(self) -> CalibrationSums:
        regions = self.options.regions + 1
        cells = self.cells.view(4, self.images, regions, self.rows, self.fine).movedim(0, 2)
        losses = self.losses.view(2, self.images, regions).movedim(0, 2)
        return CalibrationSums(cells[:, :-1], losses[:, :-1])

    def add(self, values: Tensor, label: Label, selected: Tensor | None, band: Tensor | None) -> None:
        """Add pixels: values (b, C, n), and boolean (b, 1, n) where they count and where there is a boundary."""
        target, counted = _resolve(label, values, selected, self.options)
        kept = selected if counted is None else counted if selected is None else counted & selected
        wide = at_least_single(values)
        if kept is not None:
            wide = torch.where(kept, wide, 0.0)
        probabilities = torch.softmax(wide, 1) if self.options.from_logits else wide
        confidence, predicted = probabilities.max(1, keepdim=True)
        self._check(values, confidence, kept)
        region = self._region(values, band, kept)
        index = self._index(torch.cat((confidence, probabilities), 1), region)
        log = _NegativeLog(wide, confidence, predicted, self.options.from_logits)
        if isinstance(label, HardLabel):
            self._add_hard_hits(index, target, predicted)
            squares = probabilities.square().sum(1, keepdim=True) - 2 * probabilities.gather(1, target) + 1
            logs = log(wide.gather(1, target))
        else:
            self._add_soft_hits(index, target, predicted)
            squares = (probabilities - target).square().sum(1, keepdim=True)
            logs = torch.where(target == 0, 0.0, target * log(wide)).sum(1, keepdim=True)
        for row, terms in zip(self.losses, (squares, logs), strict=True):
            _add(row, region, terms)

    def _check(self, values: Tensor, confidence: Tensor, kept: Tensor | None) -> None:
        if self.options.from_logits:
            if bool(confidence.isnan().any()):
                raise ValueError("probabilities: the softmax of these logits is NaN; the network may have diverged")
            return
        everywhere = torch.ones_like(confidence[:, 0], dtype=torch.bool)
        check_distribution(
            "probabilities",
            values,
            everywhere if kept is None else kept[:, 0],
            "of logits, take the softmax or pass from_logits=True",
        )

    def _region(self, values: Tensor, band: Tensor | None, kept: Tensor | None) -> Tensor:
        """The number (b, 1, n) of each pixel's region, counted on from image to image."""
        region = torch.zeros_like(values[:, :1], dtype=torch.int32)
        if band is not None:
            region += band
        if kept is not None:
            region = torch.where(kept, region, self.options.regions)
        if self.options.per_image:
            numbers = torch.arange(len(values), dtype=torch.int32, device=values.device)
            region += numbers.view(-1, 1, 1) * (self.options.regions + 1)
        return region

    def _index(self, confidence: Tensor, region: Tensor) -> Tensor:
        """The cell (b, C + 1, n) of each confidence; counts it and adds the confidence there."""
        row = torch.arange(0, self.rows * self.fine, self.fine, dtype=torch.int32, device=region.device)
        # Probabilities may miss 0 and 1 by the tolerance of the check.
        index = (confidence * self.fine).to(torch.int32).clamp_(0, self.fine - 1)
        index += row.unsqueeze(1) + region * (self.rows * self.fine)
        _count(self.cells[0], index)
        _add(self.cells[1], index, confidence)
        return index

    def _add_hard_hits(self, index: Tensor, ids: Tensor, predicted: Tensor) -> None:
        right = ids == predicted
        top, by_class = index[:, :1], index.gather(1, ids + 1)
        for row, of_class in ((self.cells[2], by_class), (self.cells[3], by_class[right])):
            _count(row, top[right])
            _count(row, of_class)

    def _add_soft_hits(self, index: Tensor, label: Tensor, predicted: Tensor) -> None:
        top, hit = index[:, :1], label.gather(1, predicted)
        for row, cells, hits in (
            (self.cells[2], index[:, 1:], label),
            (self.cells[3], index.gather(1, predicted + 1), hit),
        ):
            _add(row, top, hit)
            _add(row, cells, hits)


class _NegativeLog:
    """-log p, of logits (exact where p underflows) or of probabilities (at least ``SMALLEST_PROBABILITY``)."""

    def __init__(self, values: Tensor, confidence: Tensor, predicted: Tensor, from_logits: bool) -> None:
        # log(sum(exp(logits))) = largest logit - log(largest p)
        self.log_total = values.gather(1, predicted) - confidence.log() if from_logits else None

    def __call__(self, values: Tensor) -> Tensor:
        if self.log_total is None:
            return -values.clamp(min=SMALLEST_PROBABILITY).log()
        return self.log_total - values


def _count(sums: Tensor, index: Tensor) -> None:
    """Add 1 to ``sums`` at each index."""
    sums.index_add_(0, index.flatten(), sums.new_ones(()).expand(index.numel()))


def _add(sums: Tensor, index: Tensor, values: Tensor) -> None:
    """Add the values to ``sums``, float64, at their index."""
    # Unlike bincount with weights, this has a deterministic mode on accelerators.
    sums.index_add_(0, index.flatten(), values.to(sums.dtype).flatten())

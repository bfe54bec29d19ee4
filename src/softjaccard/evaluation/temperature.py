"""Temperature scaling: one number, fitted on a validation set, that makes probabilities calibrated on average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from softjaccard.errors import InputError
from softjaccard.labels import LabelLike, as_label
from softjaccard.labels.checks import describe
from softjaccard.labels.kinds import Label
from softjaccard.metrics.inputs import check_mask
from softjaccard.statistics.pixels import Options, Pixels, resolve_pixels
from softjaccard.statistics.tiles import Tile, Tiles, Workspace

Batch = tuple[Tensor, LabelLike] | tuple[Tensor, LabelLike, Tensor]

#: Temperatures from one end of the range to the other; each pass narrows the range down to one gap between them.
_TRIED = 11
_NARROWINGS = 4


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature and how far it helps."""

    value: float
    """By which logits are to be divided."""
    nll_before: float
    """Mean negative log-likelihood in nats at temperature 1."""
    nll_after: float
    """The same at ``value``."""
    at_bound: Literal["lower", "upper"] | None
    """Which bound the likelihood is still improving at; ``value`` is that bound then, and no optimum."""


def fit_temperature(
    batches: Iterable[Batch],
    *,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    ignore_index: int = -100,
    bounds: tuple[float, float] = (0.05, 20.0),
) -> Temperature:
    """The temperature T that gives probabilities of logits / T the least negative log-likelihood.

    Temperature scaling of Guo et al., On calibration of modern neural networks, ICML 2017. The likelihood is convex
    in 1 / T, so its slope has a single change of sign, which is looked for in log T between the bounds. Where a
    better fit never ends, as for a binary network that is right everywhere, the bound is returned and named.

    The batches are gone through five times, and no pixel is kept. To spare the network those passes, keep its logits,
    or those of every fourth row and column of pixels.

    Args:
        batches: pairs of logits ``(B, C, *spatial)`` and label, or triples with a boolean mask ``(B, *spatial)`` in
            addition, as the losses take them; iterable several times, such as a list, and the same each time.
        activation: ``"softmax"``, or ``"sigmoid"`` for classes that are each a yes or no, such as binary logits with
            C = 1.
        ignore_index: pixels with this label do not count.
        bounds: the least and the largest temperature.

    Returns:
        The temperature, to 1e-6 of its value, with the likelihood before and after.

    Raises:
        InputError: ``bounds`` are not positive and rising, ``batches`` can be gone through only once, no pixel counts,
            or logits are not finite.
        TypeError: a label or mask is none.
        ValueError: a label or mask does not fit the logits.

    Example:
        >>> logits = torch.tensor([[[4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])
        >>> fit = fit_temperature([(logits, torch.tensor([[0, 0, 0, 1]]))])
        >>> round(fit.value, 4), round(4 / math.log(3), 4), fit.at_bound
        (3.641, 3.641, None)
    """
    low, high = bounds
    if not 0 < low < high < math.inf:
        raise InputError(f"bounds: expected two positive numbers, the smaller first, got {bounds}")
    if isinstance(batches, Iterator):
        raise InputError(
            "batches: expected something to go through several times, such as a list, got an iterator, "
            f"{describe(batches)}"
        )
    options = Options(ignore_index, activation)
    # Temperature 1 comes first, for the likelihood before.
    tried = [1.0, *_spread(low, high)]
    (before, at_one), *ends = _evaluate(batches, tried, options)
    if at_one == 0 and low <= 1 <= high:
        return Temperature(1.0, before, before, None)
    if ends[0][1] <= 0:
        return Temperature(low, before, ends[0][0], "lower")
    if ends[-1][1] >= 0:
        return Temperature(high, before, ends[-1][0], "upper")
    tried, slopes = tried[1:], [slope for _, slope in ends]
    for _ in range(_NARROWINGS - 1):
        number = next(number for number, slope in enumerate(slopes) if slope <= 0)
        left, right = slopes[number - 1], slopes[number]
        tried = _spread(tried[number - 1], tried[number])
        slopes = [left, *(slope for _, slope in _evaluate(batches, tried[1:-1], options)), right]
    number = next(number for number, slope in enumerate(slopes) if slope <= 0)
    # The slope is as good as a straight line in log T between temperatures as close as these.
    part = slopes[number - 1] / (slopes[number - 1] - slopes[number])
    value = tried[number - 1] ** (1 - part) * tried[number] ** part
    [(after, _)] = _evaluate(batches, [value], options)
    return Temperature(value, before, after, None)


def _spread(low: float, high: float) -> list[float]:
    """Temperatures from ``low`` to ``high``, evenly spread in their logarithm."""
    ratio = high / low
    return [low, *(low * ratio ** (step / (_TRIED - 1)) for step in range(1, _TRIED - 1)), high]


def _evaluate(batches: Iterable[Batch], temperatures: list[float], options: Options) -> list[tuple[float, float]]:
    """At each temperature T, the mean over pixels of -log likelihood and its derivative with respect to 1 / T."""
    sums, pixels = torch.zeros((len(temperatures), 2), dtype=torch.float64), 0.0
    for logits, label, *mask in batches:
        for found, counted in _sum_batch(logits, label, mask, temperatures, options):
            sums += found.cpu()
            pixels += counted.item()
    if pixels == 0:
        raise InputError(
            f"batches: found no pixel with a label other than ignore_index ({options.ignore_index}); a temperature "
            "needs some"
        )
    return [(nll, slope) for nll, slope in (sums / pixels).tolist()]


def _sum_batch(
    logits: Tensor, label: LabelLike, mask: list[Tensor], temperatures: list[float], options: Options
) -> Iterator[tuple[Tensor, Tensor]]:
    """The sums of each tile; see :func:`_sum_tile`."""
    fitted = _check(logits, label, mask, options)
    tiles = Tiles(logits, options)

    def work(tile: Tile, _: Workspace) -> tuple[Tensor, Tensor]:
        def cut(tensor: Tensor) -> Tensor:
            return tiles.cut(tensor, tile)

        selected = cut(mask[0]).unsqueeze(1) if mask else None
        pixels = resolve_pixels(cut(logits).double(), fitted.map(cut), selected, options)
        return _sum_tile(pixels, temperatures, options)

    return (sums for _, sums in tiles.for_each(work))


def _check(logits: Tensor, label: LabelLike, mask: list[Tensor], options: Options) -> Label:
    """The label, made fit for the logits."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 3:
        raise InputError(f"batches: expected logits, a float tensor (B, C, *spatial), got {describe(logits)}")
    for each in mask:
        check_mask(each, (*logits.shape[:1], *logits.shape[2:]))
    return as_label(label, logits.shape, options.activation)


def _sum_tile(pixels: Pixels, temperatures: list[float], options: Options) -> tuple[Tensor, Tensor]:
    """Sums (temperatures, 2) of -log likelihood and its derivative, and the number of pixels."""
    logits, label, weight = pixels
    if not bool(logits.isfinite().all()):
        raise InputError("batches: expected finite logits; the network's output may have diverged")
    softmax = options.activation == "softmax"
    if weight is None:
        weight = torch.ones_like(logits[:, :1])
    if not softmax:  # every class of a pixel is a decision of its own
        weight = weight.expand_as(logits)
    sums = []
    for temperature in temperatures:
        scaled = logits / temperature
        if softmax:
            log_probability = torch.log_softmax(scaled, 1)
            probability, losses = log_probability.exp(), -(label * log_probability)
        else:
            probability, losses = torch.sigmoid(scaled), -F.logsigmoid(-scaled) - label * scaled
        slopes = (probability - label) * logits
        sums.append(torch.stack([(weight * terms).sum() for terms in (losses, slopes)]))
    return torch.stack(sums), weight.sum()

"""The pixels of one call, made ready for the sums: both backends start here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from softjaccard.labels.checks import ValueCheck, tolerance
from softjaccard.labels.kinds import Activation, Label, LabelOptions, probabilities

#: The names of all statistics, in the order of :class:`~softjaccard.statistics.RegionStatistics`.
FIELDS = (
    "prediction",
    "label",
    "overlap",
    "cross_entropy",
    "product",
    "prediction_square",
    "label_square",
    "label_entropy",
    "prediction_peak",
    "label_peak",
    "pixels",
)

#: Under activation None, a logarithm takes no probability smaller than this, so that value and gradient stay finite.
SMALLEST_PROBABILITY = 1e-12


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which logits of ``dtype`` are summed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_binary(values: Tensor, activation: Activation) -> bool:
    """Whether each class of ``values`` (B, C, ...) is a yes or no of its own: under sigmoid, and for a single class."""
    return activation == "sigmoid" or values.shape[1] == 1


@dataclass(frozen=True)
class Options(LabelOptions):
    """What the sums depend on besides the tensors."""

    error_scaled: bool = False
    want: tuple[str, ...] = ()
    per_channel: bool = False
    """Whether pixels are counted for each channel apart: a mask with channels, or multilabel integer maps."""
    check: bool = True
    """Whether invalid values raise; else they make the result NaN."""
    size: tuple[int, int] | None = None
    """The resolution to which logits (and a teacher's) are interpolated; None if all have the label's."""
    align_corners: bool = False
    """Whether the centres of the corner pixels meet, and not the corners themselves; as in torch."""


class Pixels(NamedTuple):
    """Logits, label and weights of some pixels; where one does not count, its logits and weight are 0."""

    logits: Tensor
    """(B, C, *spatial) in the dtype of the sums, divided by the temperature."""
    label: Tensor
    """(B, C, *spatial) in the same dtype."""
    weight: Tensor | None
    """(B, 1 or C, *spatial) in the same dtype; None if every pixel counts as 1."""


def interpolate(values: Tensor, options: Options) -> Tensor:
    """``(B, C, h, w)`` at the resolution of ``options``, in the dtype of the sums."""
    if options.size is None or values.shape[2:] == options.size:
        return values
    wide = values.to(sum_dtype(values.dtype))
    return F.interpolate(wide, options.size, mode="bilinear", align_corners=options.align_corners)


def resolve_weight(mask: Tensor | None, dtype: torch.dtype, check: ValueCheck) -> tuple[Tensor | None, Tensor | None]:
    """The mask as weights, and the boolean map of weights that are not zero."""
    if mask is None:
        return None, None
    if mask.dtype == torch.bool:
        return mask.to(dtype), mask
    weight = mask.to(dtype)
    check.flag(~((weight >= 0) & (weight < float("inf"))), lambda: _explain_weights(weight))
    return weight, weight != 0


def _explain_weights(weight: Tensor) -> str:
    return (
        "mask: expected finite weights of at least 0, found values from "
        f"{weight.min().item():.4g} to {weight.max().item():.4g}"
    )


def resolve_pixels(
    logits: Tensor, label: Label, mask: Tensor | None, options: Options, *, overwrite: bool = False
) -> Pixels:
    """Select the pixels that count. ``mask`` is ``(B, 1 or C, *spatial)``; ``logits`` may be overwritten if so said.

    Pixels that don't count are selected away, never multiplied away, so that NaN there changes nothing.
    """
    dtype = sum_dtype(logits.dtype)
    check = ValueCheck(options.check)
    weight, selected = resolve_weight(mask, dtype, check)
    value, counted = label.resolve(logits.shape, dtype, options, selected, check)
    if selected is not None:
        counted = selected if counted is None else counted & selected
    wide = logits.to(dtype)
    if options.activation is None:
        slack = tolerance(logits.dtype)
        outside = ~((wide >= -slack) & (wide <= 1 + slack))
        check.flag(
            outside if counted is None else outside & counted,
            lambda: (
                f"logits: with activation=None these are probabilities in [0, 1], found values from "
                f"{wide.min().item():.4g} to {wide.max().item():.4g}; use activation='softmax' or 'sigmoid' for logits"
            ),
        )
    if options.temperature != 1.0:
        wide = wide / options.temperature
    if counted is not None and options.check and bool(counted.all()):
        counted = None
        if mask is not None and mask.dtype == torch.bool:
            weight = None
    if counted is not None:
        wide = wide.masked_fill_(~counted, 0) if overwrite else torch.where(counted, wide, 0)
        weight = counted.to(dtype) if weight is None else torch.where(counted, weight, 0.0)
    if check.invalid is not None:
        invalid = check.invalid if options.per_channel else check.invalid.any(1, keepdim=True)
        weight = torch.where(invalid, float("nan"), wide.new_ones(()) if weight is None else weight)
    return Pixels(wide, value, weight)


class _ScaleGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def _log_terms(logits: Tensor, label: Tensor, options: Options) -> Tensor:
    """-y log p, and for independent classes -(y log p + (1 - y) log(1 - p)), from the logits."""
    if options.activation == "sigmoid":
        log = torch.nn.functional.logsigmoid
        return -(label * log(logits) + (1 - label) * log(-logits))
    if options.activation is None:
        log_probability = logits.clamp(min=SMALLEST_PROBABILITY).log()
        if is_binary(logits, options.activation):
            return -(label * log_probability + (1 - label) * (1 - logits).clamp(min=SMALLEST_PROBABILITY).log())
    else:
        log_probability = torch.log_softmax(logits, 1)
    # Where a class has no label, its logit may be -inf.
    return -torch.where(label == 0, 0.0, label * log_probability)


def _entropy_terms(label: Tensor, options: Options) -> Tensor:
    """-y log y, and for independent classes -(y log y + (1 - y) log(1 - y))."""
    entropy: Tensor = torch.special.entr(label.clamp(min=0))
    if is_binary(label, options.activation):
        entropy = entropy + torch.special.entr((1 - label).clamp(min=0))
    return entropy


def count_pixels(pixels: Pixels) -> Tensor:
    """The sum of the weights, ``(B, C)``."""
    images, classes = pixels.logits.shape[:2]
    if pixels.weight is None:
        return pixels.logits.new_full((images, classes), pixels.logits[0, 0].numel())
    return pixels.weight.flatten(2).sum(2).expand(images, classes)


def sum_pixels(pixels: Pixels, options: Options) -> dict[str, Tensor]:
    """The sums of the table in :class:`~softjaccard.statistics.RegionStatistics`, read line by line.

    Each is ``(B, C)``, ``pixels`` ``(B, C)`` too; only those in ``options.want``. Differentiable by autograd.
    """
    logits, label, weight = pixels
    p = probabilities(logits, options.activation)
    if options.error_scaled:
        p = _ScaleGradient.apply(p, (p - label).abs().detach())

    def total(terms: Tensor) -> Tensor:
        return (terms if weight is None else terms * weight).flatten(2).sum(2)

    def peak(values: Tensor) -> Tensor:
        values = values.detach()
        if weight is None:
            return values.flatten(2).amax(2)
        # The added sum is 0, or NaN where a weight is: an invalid pixel shows in the peaks, too.
        return torch.where(weight > 0, values, 0.0).flatten(2).amax(2) + 0 * weight.flatten(2).sum(2)

    formulas = {
        "prediction": lambda: total(p),
        "label": lambda: total(label),
        # torch.minimum halves the gradient at ties.
        "overlap": lambda: total(torch.minimum(p, label)),
        "cross_entropy": lambda: total(_log_terms(logits, label, options)),
        "product": lambda: total(p * label),
        "prediction_square": lambda: total(p * p),
        "label_square": lambda: total(label * label),
        "label_entropy": lambda: total(_entropy_terms(label, options)),
        "prediction_peak": lambda: peak(p),
        "label_peak": lambda: peak(label),
        "pixels": lambda: count_pixels(pixels),
    }
    return {name: formulas[name]() for name in options.want}

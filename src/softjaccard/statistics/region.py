"""Region statistics: what the losses know about the pixels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from softjaccard.labels.checks import describe
from softjaccard.labels.kinds import (
    Activation,
    HardLabel,
    Label,
    LabelLike,
    SmoothedLabel,
    TeacherLabel,
    as_label,
)
from softjaccard.statistics.chunked import chunked
from softjaccard.statistics.fused import fused, supports
from softjaccard.statistics.pixels import FIELDS, Options
from softjaccard.statistics.reference import reference

Gradient: TypeAlias = Literal["exact", "error_scaled"]
Backend: TypeAlias = Literal["auto", "reference", "chunked", "triton"]
Upsample: TypeAlias = Literal["bilinear"] | None


def _auto(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> dict[str, Tensor]:
    """The fastest backend that takes the case."""
    on_device = logits.device.type == "cuda" and supports(logits, label, mask, options) is None
    return (fused if on_device else chunked)(logits, label, mask, options)


_BACKENDS: dict[str, Callable[[Tensor, Label, Tensor | None, Options], dict[str, Tensor]]] = {
    "auto": _auto,
    "chunked": chunked,
    "reference": reference,
    "triton": fused,
}
_ACTIVATIONS = ("softmax", "sigmoid", None)
_GRADIENTS = ("exact", "error_scaled")
_UPSAMPLES = ("bilinear", None)

PEAKS = ("prediction_peak", "label_peak")


@dataclass(frozen=True, eq=False)
class RegionStatistics:
    """Sums over the pixels that count, for each image and class.

    With the probability p, the label y and the weight w of a pixel; all are ``(B, C)``, ``pixels`` is ``(B,)``. They
    are float32, or float64 for float64 logits. A field that was not asked for is None.

    Sums add: ``a + b`` are the statistics of two disjoint parts of the same images, such as the inside and the outside
    of a pasted box, and ``a.total()`` those of the whole batch.
    """

    prediction: Tensor | None = None
    """Sum of w p."""
    label: Tensor | None = None
    """Sum of w y."""
    overlap: Tensor | None = None
    """Sum of w min(p, y), the intersection of the metric losses; at p = y the gradient of min is 1/2."""
    cross_entropy: Tensor | None = None
    """Sum of -w y log p; under sigmoid and for a single class of -w (y log p + (1 - y) log(1 - p))."""
    product: Tensor | None = None
    """Sum of w p y, the intersection of the classic losses."""
    prediction_square: Tensor | None = None
    """Sum of w p^2."""
    label_square: Tensor | None = None
    """Sum of w y^2."""
    label_entropy: Tensor | None = None
    """Sum of -w y log y; under sigmoid and for a single class of -w (y log y + (1 - y) log(1 - y))."""
    prediction_peak: Tensor | None = None
    """Largest p where w > 0, 0 if there is none; no gradient."""
    label_peak: Tensor | None = None
    """Largest y where w > 0, 0 if there is none; no gradient."""
    pixels: Tensor | None = None
    """Sum of w: ``(B,)``, or ``(B, C)`` with a mask for each channel or multilabel integers."""
    soft: bool = False
    """Whether the label was a distribution (by its type) and not one class for each pixel."""
    activation: Activation = "softmax"
    """What made probabilities of the logits."""

    def __add__(self, other: RegionStatistics) -> RegionStatistics:
        """The statistics of both parts together: sums add, peaks take the larger one.

        Raises:
            ValueError: one has a field that the other lacks, or they differ in activation or shape.
        """
        if not isinstance(other, RegionStatistics):
            return NotImplemented
        _expect_same_kind(self, other)
        theirs = other.fields()
        added = {name: _add(name, value, theirs[name]) for name, value in self.fields().items()}
        return RegionStatistics(**added, soft=self.soft or other.soft, activation=self.activation)

    def __radd__(self, other: object) -> RegionStatistics:
        """So that ``sum`` of several statistics works."""
        return self if other == 0 else NotImplemented

    @staticmethod
    def cat(batches: Sequence[RegionStatistics]) -> RegionStatistics:
        """The statistics of several batches' images, one after the other, as of one batch.

        Raises:
            ValueError: there is no batch, or they differ in fields, activation or number of classes.
        """
        if not batches:
            raise ValueError("batches: expected the statistics of at least one batch, got none")
        first = batches[0]
        for other in batches[1:]:
            _expect_same_kind(first, other)
        joined = {name: _cat(name, [getattr(batch, name) for batch in batches]) for name in first.fields()}
        return RegionStatistics(**joined, soft=any(batch.soft for batch in batches), activation=first.activation)

    def total(self) -> RegionStatistics:
        """The statistics of all images as one: tensors of shape ``(1, C)``, and ``(1,)`` for ``pixels``."""
        summed = {
            name: value.amax(0, keepdim=True) if name in PEAKS else value.sum(0, keepdim=True)
            for name, value in self.fields().items()
        }
        return self._with(summed)

    def fields(self) -> dict[str, Tensor]:
        """The statistics that were asked for, by name."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}

    def __getitem__(self, name: str) -> Tensor:
        """The statistic of this name.

        Raises:
            ValueError: it was not asked for.
        """
        value = getattr(self, name, None)
        if not isinstance(value, Tensor):
            raise ValueError(
                f"statistics: {name!r} is needed but was not asked for; compute them with "
                "region_statistics(..., want=loss.want)"
            )
        return value

    def _with(self, fields: dict[str, Tensor]) -> RegionStatistics:
        return RegionStatistics(**fields, soft=self.soft, activation=self.activation)


def _expect_same_kind(first: RegionStatistics, second: RegionStatistics) -> None:
    if first.activation != second.activation:
        raise ValueError(f"statistics under {first.activation!r} and {second.activation!r} do not add")
    different = first.fields().keys() ^ second.fields().keys()
    if different:
        raise ValueError(
            f"statistics with different fields do not add; only one side has {sorted(different)}: ask for the same "
            "'want'"
        )


def _cat(name: str, values: list[Tensor]) -> Tensor:
    if len({value.shape[1:] for value in values}) > 1:
        raise ValueError(
            f"statistics: expected the same number of classes and kind of mask in every batch, got {name} of shapes "
            f"{', '.join(str(tuple(value.shape)) for value in values)}"
        )
    return torch.cat(values)


def _add(name: str, first: Tensor, second: Tensor) -> Tensor:
    if first.shape[0] != second.shape[0] or (first.shape[1:] != second.shape[1:] and name != "pixels"):
        raise ValueError(
            f"statistics of shapes {tuple(first.shape)} and {tuple(second.shape)} do not add; use .total() to add "
            "batches of different sizes"
        )
    if name in PEAKS:
        return torch.maximum(first, second)
    if first.ndim != second.ndim:  # pixels (B,) and pixels counted for each channel
        first, second = (value if value.ndim == 2 else value.unsqueeze(1) for value in (first, second))
    return first + second


def _expect_mask(mask: Tensor | None, shape: torch.Size, activation: Activation) -> Tensor | None:
    """The mask as (B, 1 or C, *spatial)."""
    if mask is None:
        return None
    expected = f"(B, *spatial) = {(shape[0], *shape[2:])}"
    if activation != "softmax":
        expected += f" or (B, 1 or C, *spatial) = {tuple(shape)}"
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(
            f"mask: expected booleans or non-negative float weights {expected}, got {describe(mask)}; integers become "
            "booleans with mask.bool()"
        )
    if mask.shape == (shape[0], *shape[2:]):
        return mask.unsqueeze(1)
    if activation != "softmax" and mask.shape in (shape, torch.Size((shape[0], 1, *shape[2:]))):
        return mask
    raise ValueError(f"mask: expected the shape {expected} for these logits, got {describe(mask)}")


def _one_of(name: str, value: object, allowed: Collection[Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_options(
    activation: Activation,
    temperature: float,
    gradient: Gradient,
    ignore_index: int,
    upsample: Upsample,
    align_corners: bool,
    backend: Backend,
) -> None:
    """Raise a ValueError or TypeError that names the option of :func:`region_statistics` that can't be."""
    _one_of("activation", activation, _ACTIVATIONS)
    _one_of("gradient", gradient, _GRADIENTS)
    _one_of("upsample", upsample, _UPSAMPLES)
    _one_of("align_corners", align_corners, (False, True))
    _one_of("backend", backend, _BACKENDS)
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an integer such as 255, got {ignore_index!r}")
    if not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a positive number, got {temperature!r}")
    if activation is None and temperature != 1.0:
        raise ValueError(f"temperature: only logits can be divided, but activation is None; got {temperature}")


def expect_logits(logits: Tensor, activation: Activation) -> None:
    """Raise a TypeError or ValueError unless these are float ``(B, C, *spatial)`` with some pixel."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits: expected a float tensor (B, C, *spatial), got {describe(logits)}")
    if logits.ndim < 3 or logits.numel() == 0:
        raise ValueError(
            "logits: expected (B, C, *spatial) with at least one spatial dimension and one pixel, got "
            f"{describe(logits)}"
        )
    if activation == "softmax" and logits.shape[1] < 2:
        raise ValueError(
            f"logits: softmax needs at least 2 classes, got {describe(logits)}; use activation='sigmoid' for a single "
            "class"
        )


def _resolution(label: LabelLike) -> torch.Size | None:
    """The height and width of a label; None for a teacher's, which is interpolated like the logits."""
    if isinstance(label, TeacherLabel):
        return None
    tensor = label if isinstance(label, Tensor) else next(iter(label.tensors().values()))
    return tensor.shape[-2:]


def expect_size(size: Sequence[int], **sources: Tensor) -> tuple[int, int]:
    """``size`` as (H, W), checked to be at least that of every source, which it names in its errors."""
    try:
        height, width = (index(length) for length in size)
    except (TypeError, ValueError):
        raise ValueError(f"size: expected two whole numbers (height, width), got {size!r}") from None
    if min(height, width) < 1:
        raise ValueError(f"size: expected (height, width) of at least 1, got {(height, width)}")
    for name, source in sources.items():
        if source.ndim != 4:
            raise ValueError(
                f"upsample: only two spatial dimensions can be interpolated, (B, C, H, W); got {name} "
                f"{describe(source)}"
            )
        if source.shape[2] > height or source.shape[3] > width:
            raise ValueError(
                f"upsample: expected {name} of at most the target's height and width {(height, width)}, got "
                f"{describe(source)}; pad images and labels, with ignore_index, before the network"
            )
    return height, width


def _target_size(logits: Tensor, label: LabelLike, mask: Tensor | None, size: Sequence[int] | None) -> tuple[int, int]:
    """The height and width to which logits are interpolated: ``size``, else the label's, else the mask's."""
    own = _resolution(label)
    if own is not None and len(own) != 2:
        return logits.shape[-2], logits.shape[-1]  # no label that fits; what follows says so
    target: Sequence[int] | None = own if size is None else size
    if target is None and isinstance(mask, Tensor):
        target = mask.shape[-2:]
    if target is None:
        raise ValueError(
            "size: a teacher's label without a mask has no resolution of its own to interpolate to; pass "
            "size=(height, width)"
        )
    teacher = {"label": label.logits} if isinstance(label, TeacherLabel) else {}
    found = expect_size(target, logits=logits, **teacher)
    if own is not None and own != found:
        raise ValueError(f"size: expected the label's height and width {tuple(own)}, got {found}")
    return found


def _counts_channels(label: Label, mask: Tensor | None, shape: torch.Size) -> bool:
    """Whether pixels are counted for each channel apart."""
    maps = isinstance(label, (HardLabel, SmoothedLabel)) and label.index.ndim == len(shape)
    return shape[1] > 1 and (maps or (mask is not None and mask.shape[1] > 1))


def region_statistics(
    logits: Tensor,
    label: LabelLike,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    activation: Activation = "softmax",
    temperature: float = 1.0,
    gradient: Gradient = "exact",
    upsample: Upsample = None,
    align_corners: bool = False,
    size: Sequence[int] | None = None,
    want: Collection[str] = FIELDS,
    backend: Backend = "auto",
) -> RegionStatistics:
    """Sum up predictions and label over the pixels of each image and class.

    This is the only place where the losses touch pixels. Pixels that are ignored or have weight 0 change nothing,
    whatever their logits. Gradients flow back to the logits; ``chunked`` and ``triton`` save nothing for it but the
    logits and the label, and give no double backward and no gradient to the label, which ``reference`` gives.

    Values are checked in eager mode on the CPU. On other devices and under torch.compile an invalid class id or
    probability makes the image's statistics NaN instead, because looking at the values would stall the device.

    Args:
        logits: ``(B, C, *spatial)``, float16, bfloat16, float32 or float64, any strides.
        label: a label of any kind, see :mod:`softjaccard.labels`.
        mask: boolean, or non-negative float weights, ``(B, *spatial)``; unless under softmax also
            ``(B, 1 or C, *spatial)``.
        ignore_index: the class id of pixels (or votes) that do not count; for integer labels.
        activation: ``"softmax"``, ``"sigmoid"`` (independent maps), or None: ``logits`` are probabilities in [0, 1].
        temperature: divides the logits, and a teacher's unless it has its own.
        gradient: ``"error_scaled"`` multiplies the derivative of all but ``cross_entropy`` with respect to p by
            ``|p - y|``, against over-confidence (Lux et al., Beyond scalar losses: calibrating segmentation models via
            gradient vector field surgery, MIDL 2026, PMLR 315); ``"exact"`` leaves it.
        upsample: ``"bilinear"``: the logits ``(B, C, h, w)``, and a teacher's, may have a lower resolution than the
            label. They are interpolated before the softmax, a part at a time, and never stored at full resolution.
            Infinite logits become NaN: a class is switched off by a large negative number instead.
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        size: ``(H, W)`` to interpolate to; None takes the label's, or the mask's if the label is a teacher's.
        want: the names of the statistics to compute.
        backend: ``"chunked"`` (constant extra memory, any device), ``"triton"`` (CUDA kernels: softmax, any label but
            votes, up to 1024 classes, not float64), ``"reference"`` (plain autograd), or ``"auto"``: ``"triton"`` where
            it takes the case and else ``"chunked"``.

    Returns:
        The statistics; those not in ``want`` are None.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: a shape does not fit, an option is unknown, a value is invalid, or a backend can't take the case.

    Example:
        >>> logits = torch.zeros(1, 2, 4)
        >>> statistics = region_statistics(logits, torch.tensor([[0, 0, 0, 1]]), want={"prediction", "overlap"})
        >>> statistics.prediction, statistics.overlap
        (tensor([[2., 2.]]), tensor([[1.5000, 0.5000]]))
    """
    check_options(activation, temperature, gradient, ignore_index, upsample, align_corners, backend)
    for name in want:
        _one_of("want", name, FIELDS)
    expect_logits(logits, activation)
    shape, teacher_shape = logits.shape, logits.shape
    if upsample is not None and isinstance(label, (Tensor, Label)):
        shape = torch.Size((*logits.shape[:2], *_target_size(logits, label, mask, size)))
        if isinstance(label, TeacherLabel) and label.logits.ndim == 4:
            teacher_shape = torch.Size((*logits.shape[:2], *label.logits.shape[2:]))
    elif size is not None:
        raise ValueError(f"size: {tuple(size)} is for interpolation; pass upsample='bilinear' with it")
    fitted = as_label(label, teacher_shape if isinstance(label, TeacherLabel) else shape, activation)
    mask = _expect_mask(mask, shape, activation)
    for name, tensor in (*(("label", held) for held in fitted.tensors().values()), ("mask", mask)):
        if tensor is not None and tensor.device != logits.device:
            raise ValueError(f"{name}: expected on the logits' device {logits.device}, got it on {tensor.device}")
    options = Options(
        ignore_index=ignore_index,
        activation=activation,
        temperature=float(temperature),
        error_scaled=gradient == "error_scaled",
        want=tuple(name for name in FIELDS if name in want),
        per_channel=_counts_channels(fitted, mask, shape),
        check=logits.device.type == "cpu" and not torch.compiler.is_compiling(),
        size=(shape[2], shape[3]) if not logits.shape == teacher_shape == shape else None,
        align_corners=align_corners,
    )
    sums = _BACKENDS[backend](logits, fitted, mask, options)
    if "pixels" in sums and not options.per_channel:
        sums["pixels"] = sums["pixels"][:, 0]
    return RegionStatistics(**sums, soft=fitted.soft, activation=activation)

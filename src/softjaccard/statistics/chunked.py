"""The backend with constant extra memory: a tile of pixels at a time, on any device.

The forward pass sums up tiles and keeps nothing; the backward pass computes each tile's probabilities again and writes
the gradient of its logits.

Under softmax, the usual case, a tile is worked on in memory that its thread keeps for the next one.
"""

from dataclasses import replace

import torch
from torch import Tensor

from softjaccard.labels.checks import ValueCheck
from softjaccard.labels.kinds import (
    HardLabel,
    Label,
    LabelOptions,
    Resolved,
    TeacherLabel,
    class_ids,
    probabilities,
)
from softjaccard.statistics.operators import DIFFERENTIABLE, make_backend
from softjaccard.statistics.pixels import (
    FIELDS,
    SMALLEST_PROBABILITY,
    Options,
    Pixels,
    count_pixels,
    is_binary,
    resolve_pixels,
    sum_dtype,
    sum_pixels,
)
from softjaccard.statistics.tiles import Interpolation, Tile, Tiles, Workspace

#: What a hard label under softmax yields without a dense tile of it.
_HARD_FIELDS = frozenset(FIELDS) - {"prediction_square", "prediction_peak"}
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


# --- Hard labels under softmax: no dense tile of the label -----------------------------------------------------------


class _ClassIds(HardLabel):
    """A hard label that resolves to its ids (b, 1, n) and not to one-hot maps."""

    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        return Resolved(*class_ids(self.index.unsqueeze(1), shape[1], options.ignore_index, selected, check))


def _sum_by_class(values: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Sums (b, k, C) of k values (b, k, n) over the pixels of each class, in float64 or the values' dtype."""
    if values.device.type != "cpu":
        # scatter_add_ on an accelerator adds in no fixed order.
        hit = ids == torch.arange(classes, device=ids.device)[:, None]
        return torch.stack([torch.where(hit, values[:, i : i + 1], 0.0).sum(2) for i in range(values.shape[1])], 1)
    sums = torch.zeros((*values.shape[:2], classes), dtype=torch.float64, device="cpu")
    return sums.scatter_add_(2, ids.expand_as(values), values.double())


def _minus_log_label(logits: Tensor, p: Tensor, p_label: Tensor, ids: Tensor) -> Tensor:
    """-log p of the label (b, 1, n), exact where p underflows."""
    if logits.device.type != "cpu":
        # Without a look at the values: log(sum(exp(logits))) = largest logit - log(largest p).
        return logits.amax(1, keepdim=True) - p.amax(1, keepdim=True).log() - logits.gather(1, ids)
    result = -p_label.log()
    if p_label.amin() < _SMALLEST_NORMAL:
        image, pixel = (p_label[:, 0] < _SMALLEST_NORMAL).nonzero(as_tuple=True)
        label = logits[image, ids[image, 0, pixel], pixel]
        result[image, 0, pixel] = logits[image, :, pixel].logsumexp(1) - label
    return result


def _sum_hard(pixels: Pixels, options: Options, workspace: Workspace) -> dict[str, Tensor]:
    """Like :func:`sum_pixels`; the pixels' label holds class ids (b, 1, n)."""
    logits, ids, weight = pixels
    p = _softmax(logits, workspace)
    p_label = p.gather(1, ids)
    values = [torch.ones_like(p_label), p_label]
    if "cross_entropy" in options.want:
        values.append(_minus_log_label(logits, p, p_label, ids))
    at_label = torch.cat(values, 1)
    if weight is not None:
        at_label.mul_(weight)
        p.mul_(weight)
    by_class = _sum_by_class(at_label, ids, logits.shape[1])
    if weight is not None and not options.check:  # one invalid pixel makes all of its image NaN
        by_class = by_class + 0 * weight.sum(2, keepdim=True)
    label, overlap, *cross_entropy = by_class.unbind(1)
    formulas = {
        "prediction": lambda: p.sum(2),
        "label": lambda: label,
        "label_square": lambda: label,
        "label_peak": lambda: torch.where(label > 0, 1.0, 0 * label),  # NaN stays NaN
        "label_entropy": lambda: 0 * label,
        "overlap": lambda: overlap,
        "product": lambda: overlap,
        "cross_entropy": lambda: cross_entropy[0],
        "pixels": lambda: count_pixels(pixels),
    }
    return {name: formulas[name]() for name in options.want}


def _slope_hard(pixels: Pixels, p: Tensor, gradients: dict[str, Tensor], options: Options) -> Tensor:
    """Like :func:`_slope_dense`; the pixels' label holds class ids (b, 1, n)."""
    logits, ids, _ = pixels

    def at_label(values: Tensor) -> Tensor:
        return values.gather(1, ids[:, 0]).unsqueeze(1)

    p_label = p.gather(1, ids)
    slope = torch.mul(p, gradients["prediction"].unsqueeze(2), out=logits)
    # p = 1 at the label is a tie by rounding only, and no gradient goes through the softmax there.
    own = at_label(gradients["overlap"] + gradients["product"])
    if options.error_scaled:
        slope.mul_(p)
        prediction = at_label(gradients["prediction"])
        own = (own + prediction) * (1 - p_label) - prediction * p_label
    return slope.scatter_add_(1, ids, p_label * own - at_label(gradients["cross_entropy"]))


# --- Every label under softmax ----------------------------------------------------------------------------------------


def _softmax(logits: Tensor, workspace: Workspace) -> Tensor:
    p = workspace.take("probabilities", tuple(logits.shape), logits)
    return torch.ops.aten._softmax.out(logits, 1, False, out=p)  # type: ignore[no-any-return]


def _sum_dense(pixels: Pixels, options: Options, workspace: Workspace) -> dict[str, Tensor]:
    """:func:`sum_pixels` under softmax, in the workspace."""
    logits, label, weight = pixels
    p = _softmax(logits, workspace)
    terms = workspace.take("terms", tuple(logits.shape), logits)
    plain = replace(options, want=tuple(name for name in options.want if name.endswith("peak")))
    sums = sum_pixels(Pixels(p, label, weight), replace(plain, activation=None)) if plain.want else {}

    def total(values: Tensor) -> Tensor:
        return (values if weight is None else torch.mul(values, weight, out=terms)).sum(2)

    def cross_entropy() -> Tensor:
        log_total = logits.amax(1, keepdim=True) - p.amax(1, keepdim=True).log()
        # Where a class has no label, its logit may be -inf.
        return torch.sub(log_total, logits, out=terms).mul_(label).masked_fill_(label == 0, 0.0)

    formulas = {
        "prediction": lambda: total(p),
        "label": lambda: total(label),
        "overlap": lambda: total(torch.minimum(p, label, out=terms)),
        "cross_entropy": lambda: total(cross_entropy()),
        "product": lambda: total(torch.mul(p, label, out=terms)),
        "prediction_square": lambda: total(torch.mul(p, p, out=terms)),
        "label_square": lambda: total(torch.mul(label, label, out=terms)),
        "label_entropy": lambda: total(torch.special.entr(torch.clamp(label, min=0, out=terms), out=terms)),
        "pixels": lambda: count_pixels(pixels),
    }
    return {name: sums[name] if name in sums else formulas[name]() for name in options.want}


def _slope_dense(
    pixels: Pixels, p: Tensor, gradients: dict[str, Tensor], options: Options, workspace: Workspace
) -> Tensor:
    """The probabilities times the derivative with respect to p, (b, C, n), from the gradients (b, C) of the sums."""
    logits, label, _ = pixels
    by_class = {name: value.unsqueeze(2) for name, value in gradients.items()}
    slope = workspace.take("terms", tuple(logits.shape), logits)
    difference = torch.sub(label, p, out=logits)
    if "overlap" in options.want:  # 1 where p < y, 1/2 where they tie
        half = by_class["overlap"] / 2
        torch.sign(difference, out=slope).mul_(half).add_(by_class["prediction"] + half)
    else:
        slope.copy_(by_class["prediction"].expand_as(slope))
    if "product" in options.want:
        slope.addcmul_(by_class["product"], label)
    if "prediction_square" in options.want:
        slope.addcmul_(by_class["prediction_square"], p, value=2)
    if options.error_scaled:
        slope.mul_(difference.abs_())
    slope.mul_(p)
    if "cross_entropy" in options.want:
        slope.addcmul_(by_class["cross_entropy"], label, value=-1)
    return slope


def _gradient_softmax(
    pixels: Pixels, gradients: dict[str, Tensor], options: Options, workspace: Workspace, out: Tensor | None, hard: bool
) -> Tensor:
    """The gradient of a tile's logits (b, C, n), which it overwrites, from the gradients (b, C) of the sums."""
    p = _softmax(pixels.logits, workspace)
    if hard:
        slope = _slope_hard(pixels, p, gradients, options)
    else:
        slope = _slope_dense(pixels, p, gradients, options, workspace)
    if pixels.weight is not None:
        slope.mul_(pixels.weight)
    # With s = p slope - y cross_entropy the gradient is s - p sum(s).
    total = slope.sum(1, keepdim=True)
    return torch.addcmul(slope, p, total, value=-1, out=slope if out is None else out)


# --- Sigmoid and probabilities ----------------------------------------------------------------------------------------


def _gradient_maps(pixels: Pixels, gradients: dict[str, Tensor], options: Options) -> Tensor:
    """Like :func:`_gradient_softmax`, for the other activations."""
    logits, label, weight = pixels
    p = probabilities(logits, options.activation)
    by_class = {name: value.unsqueeze(2) for name, value in gradients.items()}
    slope = by_class["prediction"].expand_as(p)
    if "overlap" in options.want:
        half = torch.full((), 0.5, dtype=p.dtype, device=p.device)
        slope = slope + by_class["overlap"] * torch.heaviside(label - p, half)
    if "product" in options.want:
        slope = slope + by_class["product"] * label
    if "prediction_square" in options.want:
        slope = slope + 2 * by_class["prediction_square"] * p
    if options.error_scaled:
        slope = slope * (p - label).abs()
    gradient = slope * p * (1 - p) if options.activation == "sigmoid" else slope.clone()
    if "cross_entropy" in options.want:
        if options.activation == "sigmoid":
            gradient.addcmul_(by_class["cross_entropy"], p - label)
        else:
            weighted = by_class["cross_entropy"] * label
            gradient.sub_(torch.where(p >= SMALLEST_PROBABILITY, weighted / p, 0.0))
            if is_binary(p, options.activation):
                opposite = by_class["cross_entropy"] * (1 - label)
                gradient.add_(torch.where(1 - p >= SMALLEST_PROBABILITY, opposite / (1 - p), 0.0))
    return gradient if weight is None else gradient.mul_(weight)


# --- One call ---------------------------------------------------------------------------------------------------------


class _Work:
    """One call's tiles, label, mask and options, made ready."""

    def __init__(self, logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> None:
        self.tiles, self.mask = Tiles(logits, options), mask
        self.hard = (
            isinstance(label, HardLabel) and options.activation == "softmax" and _HARD_FIELDS.issuperset(options.want)
        )
        self.teacher = None
        if isinstance(label, TeacherLabel):
            label = replace(label, temperature=label.temperature or options.temperature)
            if options.size is not None:
                self.teacher = Interpolation(label.logits, options, self.tiles.order)
        self.label = _ClassIds(label.index) if self.hard and isinstance(label, HardLabel) else label
        self.options = replace(options, temperature=1.0)  # the tiles divide by it

    def pixels(self, tile: Tile, workspace: Workspace) -> Pixels:
        teacher = self.teacher

        def cut(tensor: Tensor) -> Tensor:
            return self.tiles.cut(tensor, tile) if teacher is None else teacher.band(tile, workspace, "teacher")

        label = self.label.map(cut)
        mask = None if self.mask is None else self.tiles.cut(self.mask, tile)
        return resolve_pixels(self.tiles.values(tile, workspace), label, mask, self.options, overwrite=True)


def _sums(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> Tensor:
    """The sums named in ``want``, ``(len(want), B, C)``."""
    call = _Work(logits, label, mask, options)
    options = replace(call.options, error_scaled=False)  # the value is the same; only the backward pass differs
    dtype = sum_dtype(logits.dtype)
    # Sums of many tiles are added in float64, which MPS lacks.
    wide = dtype if logits.device.type == "mps" else torch.float64
    peaks = [name.endswith("peak") for name in options.want]
    sums = torch.zeros((len(options.want), *logits.shape[:2]), dtype=wide, device=logits.device)

    def work(tile: Tile, workspace: Workspace) -> Tensor:
        pixels = call.pixels(tile, workspace)
        if call.hard:
            found = _sum_hard(pixels, options, workspace)
        elif options.activation == "softmax":
            found = _sum_dense(pixels, options, workspace)
        else:
            found = sum_pixels(pixels, options)
        return torch.stack([found[name].to(wide) for name in options.want])

    for tile, found in call.tiles.for_each(work):
        part = sums[:, tile[0]]
        largest = torch.maximum(part, found) if any(peaks) else part
        part.add_(found)
        for row, peak in enumerate(peaks):
            if peak:
                part[row] = largest[row]
    return sums.to(dtype)


def _gradient(upstream: Tensor, logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> Tensor:
    """The gradient of the logits from the gradient ``(len(want), B, C)`` of the sums."""
    call = _Work(logits, label, mask, options)
    zero = torch.zeros_like(upstream[0])
    by_name = dict.fromkeys(DIFFERENTIABLE, zero) | dict(zip(options.want, upstream / options.temperature, strict=True))
    tiles, options = call.tiles, call.options
    result = torch.empty_like(logits) if tiles.interpolation is None else torch.zeros_like(logits, dtype=zero.dtype)

    def work(tile: Tile, workspace: Workspace) -> tuple[slice, Tensor] | None:
        pixels = call.pixels(tile, workspace)
        part = {name: by_name[name][tile[0]] for name in DIFFERENTIABLE}
        target = tiles.target(result, tile)
        if options.activation == "softmax":
            found = _gradient_softmax(pixels, part, options, workspace, target, call.hard)
        else:
            found = _gradient_maps(pixels, part, options)
        if found is not target:
            return tiles.put(result, found, tile)
        return None

    for (images, *_), rows in tiles.for_each(work):
        if rows is not None:  # bands share rows of logits, so that they are added one after the other
            result[images, :, rows[0]] += rows[1]
    return result.to(logits.dtype)


chunked = make_backend("chunked", _sums, _gradient)

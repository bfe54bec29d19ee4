"""The backend with constant extra memory: a tile of pixels at a time, on any device.

The forward pass sums up tiles and keeps nothing; the backward pass computes each tile's probabilities again and writes
the gradient of its logits. Both are opaque operators, so that torch.compile leaves them whole.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from math import prod
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from softjaccard.labels.checks import ValueCheck, describe
from softjaccard.labels.kinds import (
    Activation,
    DenseLabel,
    HardLabel,
    Label,
    LabelOptions,
    RaterLabel,
    Resolved,
    SmoothedLabel,
    TeacherLabel,
    class_ids,
    probabilities,
)
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

#: Logits in a tile on the CPU: small enough for a core's caches, large enough to outweigh Python.
TILE_ELEMENTS = 2**18
#: On other devices a tile has to outweigh the launches of its kernels, some 0.1 ms; estimated, not measured.
DEVICE_TILE_ELEMENTS = 2**23

#: What a hard label under softmax yields without a dense tile of it.
_HARD_FIELDS = frozenset(FIELDS) - {"prediction_square", "prediction_peak"}
#: The statistics through which a gradient flows.
_DIFFERENTIABLE = ("prediction", "overlap", "cross_entropy", "product", "prediction_square")

#: More would wait for Python's lock, and each needs memory for a tile.
MOST_THREADS = 8

Tile = tuple[slice, ...]
Task = TypeVar("Task")
Result = TypeVar("Result")


def tiles(logits: Tensor) -> Iterator[Tile]:
    """Cut ``(B, C, *spatial)`` into tiles of at most so many elements: several small images, or a part of one."""
    images, channels, *spatial = logits.shape
    elements = TILE_ELEMENTS if logits.device.type == "cpu" else DEVICE_TILE_ELEMENTS
    budget = max(1, elements // channels)
    if prod(spatial) <= budget:
        step = budget // prod(spatial)
        whole = (slice(None),) * len(spatial)
        yield from ((slice(start, start + step), *whole) for start in range(0, images, step))
        return
    # The first axis whose rows fit is cut into bands; the axes before it are walked through one by one.
    axis = next(axis for axis in range(len(spatial)) if prod(spatial[axis + 1 :]) <= budget)
    step = budget // prod(spatial[axis + 1 :])
    inner = (slice(None),) * (len(spatial) - axis - 1)
    for outer in product(range(images), *map(range, spatial[:axis])):
        fixed = tuple(slice(position, position + 1) for position in outer)
        yield from ((*fixed, slice(start, start + step), *inner) for start in range(0, spatial[axis], step))


class _OneThreadEach:
    """While entered, torch's operators use one thread each; several callers may be inside at a time."""

    def __init__(self) -> None:
        self._lock, self._inside, self._threads = Lock(), 0, 1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._threads = torch.get_num_threads()
                torch.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.set_num_threads(self._threads)


_one_thread_each = _OneThreadEach()


def thread_count(device: torch.device, tasks: int) -> int:
    """How many threads :func:`in_threads` should use for so many tasks."""
    return max(1, min(torch.get_num_threads(), MOST_THREADS, tasks)) if device.type == "cpu" else 1


def in_threads(work: Callable[[Task], Result], tasks: Sequence[Task], threads: int) -> Iterator[Result]:
    """The results of all tasks, in order, computed without gradients.

    Each thread works on tasks of its own. Threads that shared every small operator of a tile would wait for each other
    some thousand times, which takes milliseconds each where a neighbour keeps a core busy.
    """

    def without_graph(task: Task) -> Result:
        with torch.no_grad():  # a new thread starts with gradients on
            return work(task)

    if threads == 1:
        yield from map(without_graph, tasks)
        return
    with _one_thread_each, ThreadPoolExecutor(threads) as pool:
        yield from pool.map(without_graph, tasks)


def for_each_tile(logits: Tensor, work: Callable[[Tile], Result]) -> Iterator[Result]:
    """The results of all tiles, in order."""
    everything = list(tiles(logits))
    return in_threads(work, everything, thread_count(logits.device, len(everything)))


def _with_channels(tile: Tile) -> Tile:
    return (tile[0], slice(None), *tile[1:])


def cut(tensor: Tensor, tile: Tile) -> Tensor:
    """A tile of ``(B, *spatial)`` as (b, n), or of ``(B, K, *spatial)`` as (b, K, n); a view where strides allow."""
    if tensor.ndim == len(tile):
        return tensor[tile].flatten(1)
    return tensor[_with_channels(tile)].flatten(2)


# --- Hard labels under softmax: no dense tile of the label -----------------------------------------------------------


class _ClassIds(HardLabel):
    """A hard label that resolves to its ids (b, 1, n) and not to one-hot maps."""

    def resolve(
        self, shape: torch.Size, dtype: torch.dtype, options: LabelOptions, selected: Tensor | None, check: ValueCheck
    ) -> Resolved:
        return Resolved(*class_ids(self.index.unsqueeze(1), shape[1], options.ignore_index, selected, check))


def _sum_by_class(values: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Sums (b, C) of values (b, 1, n) over the pixels of each class, in float64 or the values' dtype."""
    if values.device.type != "cpu":
        # bincount would stall an accelerator, and index_add_ there adds in no fixed order.
        hit = ids == torch.arange(classes, device=ids.device)[:, None]
        return torch.where(hit, values, 0.0).sum(2)
    offset = torch.arange(0, len(ids) * classes, classes)[:, None, None]
    sums = torch.bincount((ids + offset).flatten(), values.double().flatten(), minlength=len(ids) * classes)
    return sums.view(len(ids), classes)


def _sum_hard(pixels: Pixels, options: Options) -> dict[str, Tensor]:
    """Like :func:`sum_pixels`; the pixels' label holds class ids (b, 1, n)."""
    logits, ids, weight = pixels
    classes = logits.shape[1]
    p = torch.softmax(logits, 1)
    weights = torch.ones_like(logits[:, :1]) if weight is None else weight
    at_label = p.gather(1, ids) * weights
    sums = {"label": _sum_by_class(weights, ids, classes), "overlap": _sum_by_class(at_label, ids, classes)}
    sums["product"], sums["label_square"] = sums["overlap"], sums["label"]
    sums["label_entropy"] = torch.zeros_like(sums["label"])
    # NaN, the weight of an invalid pixel, stays NaN.
    sums["label_peak"] = torch.where(sums["label"] > 0, 1.0, 0 * sums["label"])
    sums["pixels"] = count_pixels(pixels)
    if "cross_entropy" in options.want:
        # log(sum(exp(logits))) = largest logit - log(largest p), exact where p of the label underflows.
        log_total = logits.amax(1, keepdim=True) - p.amax(1, keepdim=True).log()
        sums["cross_entropy"] = _sum_by_class((log_total - logits.gather(1, ids)) * weights, ids, classes)
    sums["prediction"] = (p if weight is None else p.mul_(weight)).sum(2)
    return {name: sums[name] for name in options.want}


def _gradient_hard(pixels: Pixels, gradients: dict[str, Tensor], options: Options) -> Tensor:
    """Like :func:`_gradient_dense`; the pixels' label holds class ids (b, 1, n)."""
    logits, ids, weight = pixels
    p = torch.softmax(logits, 1)

    def at_label(values: Tensor) -> Tensor:
        return values.gather(1, ids[:, 0]).unsqueeze(1)

    slope = torch.empty_like(p).copy_(gradients["prediction"].unsqueeze(2))
    p_label = p.gather(1, ids)
    overlap = at_label(gradients["overlap"]) * torch.where(p_label == 1, 0.5, 1.0)  # a tie, by rounding
    slope.scatter_add_(1, ids, overlap + at_label(gradients["product"]))
    if options.error_scaled:
        scaled = slope.gather(1, ids) * (1 - p_label)
        slope.mul_(p).scatter_(1, ids, scaled)
    gradient = _through_softmax(slope, p)
    if "cross_entropy" in options.want:
        cross_entropy = at_label(gradients["cross_entropy"])
        gradient.addcmul_(p, cross_entropy).scatter_add_(1, ids, -cross_entropy)
    return gradient if weight is None else gradient.mul_(weight)


def _through_softmax(slope: Tensor, p: Tensor) -> Tensor:
    """The derivative with respect to the logits from that with respect to p: p (slope - sum(p slope))."""
    return torch.ops.aten._softmax_backward_data(slope, p, 1, p.dtype)  # type: ignore[no-any-return]


# --- Every other label ------------------------------------------------------------------------------------------------


def _gradient_dense(pixels: Pixels, gradients: dict[str, Tensor], options: Options) -> Tensor:
    """The gradient of a tile's logits (b, C, n) from the gradients (b, C) of the sums."""
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
    if options.activation == "softmax":
        gradient = _through_softmax(slope.contiguous(), p)
    else:
        gradient = slope * p * (1 - p) if options.activation == "sigmoid" else slope.clone()
    if "cross_entropy" in options.want:
        weighted = by_class["cross_entropy"] * label
        if options.activation == "softmax":
            gradient.addcmul_(p, weighted.sum(1, keepdim=True)).sub_(weighted)
        elif options.activation == "sigmoid":
            gradient.addcmul_(by_class["cross_entropy"], p - label)
        else:
            gradient.sub_(torch.where(p >= SMALLEST_PROBABILITY, weighted / p, 0.0))
            if is_binary(p, options.activation):
                opposite = by_class["cross_entropy"] * (1 - label)
                gradient.add_(torch.where(1 - p >= SMALLEST_PROBABILITY, opposite / (1 - p), 0.0))
    return gradient if weight is None else gradient.mul_(weight)


# --- The operators ----------------------------------------------------------------------------------------------------

# An operator takes tensors and plain values only; labels and options are packed for it.
_ARGUMENTS = (
    "Tensor logits, str kind, Tensor label, Tensor? extra, float number, Tensor? mask, int ignore_index, "
    "str activation, float temperature, bool error_scaled, str want, bool per_channel, bool check"
)
_Packed = tuple[str, Tensor, Tensor | None, float]


def _pack_label(label: Label, temperature: float) -> _Packed:
    match label:
        case HardLabel(index):
            return "hard", index, None, 0.0
        case DenseLabel(probability):
            return "dense", probability, None, 0.0
        case SmoothedLabel(index, epsilon, where):
            return "smoothed", index, where, float(epsilon)
        case TeacherLabel(logits, own):
            return "teacher", logits, None, float(temperature if own is None else own)
        case RaterLabel(votes, weights):
            return "raters", votes, weights, 0.0
    raise TypeError(f"label: the chunked backend knows no {type(label).__name__}; use backend='reference'")


def _unpack_label(kind: str, label: Tensor, extra: Tensor | None, number: float) -> Label:
    match kind:
        case "hard":
            return HardLabel(label)
        case "dense":
            return DenseLabel(label)
        case "smoothed":
            return SmoothedLabel(label, number, extra)
        case "teacher":
            return TeacherLabel(label, number)
        case _:
            return RaterLabel(label, extra)


def _unpack(
    kind: str,
    label: Tensor,
    extra: Tensor | None,
    number: float,
    mask: Tensor | None,
    ignore_index: int,
    activation: str,
    temperature: float,
    error_scaled: bool,
    want: str,
    per_channel: bool,
    check: bool,
) -> tuple[Label, Tensor | None, Options]:
    names: dict[str, Activation] = {"softmax": "softmax", "sigmoid": "sigmoid", "none": None}
    options = Options(
        ignore_index=ignore_index,
        activation=names[activation],
        temperature=temperature,
        error_scaled=error_scaled,
        want=tuple(want.split(",")),
        per_channel=per_channel,
        check=check,
    )
    unpacked = _unpack_label(kind, label, extra, number)
    if isinstance(unpacked, HardLabel) and options.activation == "softmax" and _HARD_FIELDS.issuperset(options.want):
        unpacked = _ClassIds(unpacked.index)
    return unpacked, mask, options


def _resolve_tile(logits: Tensor, label: Label, mask: Tensor | None, options: Options, tile: Tile) -> Pixels:
    part = None if mask is None else cut(mask, tile)
    return resolve_pixels(cut(logits, tile), label.map(lambda tensor: cut(tensor, tile)), part, options)


def _region_sums(logits: Tensor, *arguments: object) -> Tensor:
    """The sums named in ``want``, ``(len(want), B, C)``."""
    label, mask, options = _unpack(*arguments)  # type: ignore[arg-type]
    options = replace(options, error_scaled=False)  # the value is the same; only the backward pass differs
    dtype = sum_dtype(logits.dtype)
    # Sums of many tiles are added in float64, which MPS lacks.
    wide = dtype if logits.device.type == "mps" else torch.float64
    sums = torch.zeros((len(options.want), *logits.shape[:2]), dtype=wide, device=logits.device)

    def work(tile: Tile) -> tuple[slice, dict[str, Tensor]]:
        pixels = _resolve_tile(logits, label, mask, options, tile)
        return tile[0], _sum_hard(pixels, options) if isinstance(label, _ClassIds) else sum_pixels(pixels, options)

    for images, found in for_each_tile(logits, work):
        for row, name in zip(sums[:, images], options.want, strict=True):
            row.copy_(torch.maximum(row, found[name].to(wide)) if name.endswith("peak") else row + found[name])
    return sums.to(dtype)


def _region_gradient(gradient: Tensor, logits: Tensor, *arguments: object) -> Tensor:
    """The gradient of the logits from the gradient ``(len(want), B, C)`` of the sums."""
    label, mask, options = _unpack(*arguments)  # type: ignore[arg-type]
    zero = torch.zeros_like(gradient[0])
    by_name = dict.fromkeys(_DIFFERENTIABLE, zero) | dict(
        zip(options.want, gradient / options.temperature, strict=True)
    )
    result = torch.empty_like(logits)

    def work(tile: Tile) -> None:
        pixels = _resolve_tile(logits, label, mask, options, tile)
        part = {name: by_name[name][tile[0]] for name in _DIFFERENTIABLE}
        compute = _gradient_hard if isinstance(label, _ClassIds) else _gradient_dense
        target = result[_with_channels(tile)]
        target.copy_(compute(pixels, part, options).view(target.shape))

    for _ in for_each_tile(logits, work):
        pass
    return result


_sums_operator = torch.library.custom_op(
    "softjaccard::region_sums", _region_sums, mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor"
)
_gradient_operator = torch.library.custom_op(
    "softjaccard::region_gradient",
    _region_gradient,
    mutates_args=(),
    schema=f"(Tensor gradient, {_ARGUMENTS}) -> Tensor",
)


def _fake_sums(logits: Tensor, *arguments: object) -> Tensor:
    want = str(arguments[9]).split(",")
    return logits.new_empty((len(want), *logits.shape[:2]), dtype=sum_dtype(logits.dtype))


def _save(ctx: Any, inputs: tuple[object, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))
    ctx.plain = [None if isinstance(value, Tensor) else value for value in inputs]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    tensors, plain = ctx.saved_tensors, ctx.plain
    inputs = [value if tensor is None else tensor for tensor, value in zip(tensors, plain, strict=True)]
    return _gradient_operator(gradient, *inputs), *(None,) * (len(inputs) - 1)


def _no_double_backward(ctx: Any, gradient: Tensor) -> None:
    raise RuntimeError("the chunked backend gives no double backward; use backend='reference'")


_sums_operator.register_fake(_fake_sums)
_gradient_operator.register_fake(lambda gradient, logits, *arguments: torch.empty_like(logits))
_sums_operator.register_autograd(_backward, setup_context=_save)
_gradient_operator.register_autograd(_no_double_backward)


def chunked(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> dict[str, Tensor]:
    """The sums ``(B, C)`` in ``options.want``; ``mask`` is ``(B, 1 or C, *spatial)``."""
    if not options.want:
        return {}
    for name, tensors in (("label", [*label.tensors().values()]), ("mask", [] if mask is None else [mask])):
        if any(tensor.requires_grad for tensor in tensors):
            raise ValueError(
                f"{name}: {describe(tensors[0])} requires grad, but this backend gives gradients to the logits only; "
                "detach it (or evaluate the teacher under torch.no_grad()), or use backend='reference'"
            )
    sums = _sums_operator(
        logits,
        *_pack_label(label, options.temperature),
        mask,
        options.ignore_index,
        options.activation or "none",
        options.temperature,
        options.error_scaled,
        ",".join(options.want),
        options.per_channel,
        options.check,
    )
    differentiable = dict(zip(options.want, sums, strict=True))
    return {name: value if name in _DIFFERENTIABLE else value.detach() for name, value in differentiable.items()}

"""The ``triton`` backend: one kernel forward, one backward, on CUDA devices.

Both read the logits once and keep them in registers. Nothing of the logits' size is written but their gradient, and
logits of a lower resolution are interpolated in registers. The sums of each program go to a buffer of their own, which
torch then adds up, so that the same input gives the same sums, bit for bit. The kernels themselves are in
:mod:`softjaccard.statistics.triton_kernels`; triton is imported when the first of them runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import pairwise
from math import ceil, log, log2, prod
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softjaccard.labels.checks import describe, tolerance
from softjaccard.labels.kinds import Label, RaterLabel
from softjaccard.statistics.chunked import _DIFFERENTIABLE, _pack_label
from softjaccard.statistics.pixels import FIELDS, Options

MOST_CLASSES = 1024
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_INSTALLED = find_spec("triton") is not None
#: Triton's interpreter runs the kernels on the CPU, for tests; triton decides when it is imported.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

#: Warps to give each multiprocessor in all: more than are resident at a time, so that none idles at the end.
_WARPS = 32
#: Programs to give each multiprocessor at least.
_PROGRAMS = 6
#: Multiprocessors to assume where there is no device, in the interpreter.
_INTERPRETED_PROCESSORS = 1

#: Fields that a hard label doesn't need sums of its own for.
_HARD_SAME = {"product": "overlap", "label_square": "label", "label_peak": "label"}


def supports(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> str | None:
    """Why the triton backend can't take this case; None if it can."""
    images, classes, *spatial = logits.shape
    reason = None  # said only where it holds: under torch.compile, to format a size would fix it
    if not _INSTALLED:
        reason = "triton is not installed"
    elif logits.device.type != "cuda" and not _INTERPRETED:
        reason = f"the logits are on {logits.device}, not on a CUDA device"
    elif options.activation != "softmax":
        reason = f"activation is {options.activation!r}, not 'softmax'"
    elif logits.dtype not in _DTYPES:
        reason = f"the logits are {describe(logits)}, not float16, bfloat16 or float32"
    elif classes > MOST_CLASSES:
        reason = f"there are {classes} classes, more than {MOST_CLASSES}"
    elif isinstance(label, RaterLabel):
        reason = "the label is a RaterLabel"
    elif mask is not None and mask.shape[1] > 1:
        reason = "the mask has channels"
    elif _too_large(images, spatial, options):
        reason = f"{images} images of {options.size or tuple(spatial)} pixels are too many for 32-bit positions"
    return reason


def _too_large(images: int, spatial: Sequence[int], options: Options) -> bool:
    """Whether a grid has no place for so many images, or a pixel's position doesn't fit 32 bits."""
    if options.size is not None and max(options.size) >= 2**15:
        return True
    return images >= 2**16 or prod(options.size or spatial) >= 2**30


# --- How work is cut -------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """The part of an image that a program holds at a time."""

    a: int
    """Rows, one for each class, of the first part; a power of two."""
    b: int
    """Rows of the second part, or 0."""
    pixels: int
    lanes: int
    """Into how many sums for each class the pixels fall, until the end."""
    warps: int


def _power_of_two(number: float) -> int:
    """The largest power of two of at most ``number``, and of at least 1."""
    return 1 << int(log2(max(1, number)))


def _parts(classes: int, whole: bool = False) -> tuple[int, int]:
    """The rows for so many classes: two powers of two where they waste less than one does, unless ``whole``."""
    a = _power_of_two(classes)
    b = max(4, 1 << (classes - a - 1).bit_length()) if classes > a else 0
    return (2 * a, 0) if b >= a or (whole and b) else (a, b)


def _tile(logits: Tensor, pixel_stride: int, together: bool) -> Tile:
    """The tile for logits at the label's resolution; ``together``: the classes of a pixel are neighbours in memory."""
    a, b = _parts(logits.shape[1], together)
    size = logits.element_size()
    pixels = logits[0, 0].numel()
    aligned = pixel_stride == 1 and pixels % 16 == 0 and logits.stride(1) % 16 == 0 and logits.data_ptr() % 16 == 0
    vector = 16 // size if aligned else 1  # how many pixels a thread reads at once
    # For each thread; with sums and temporaries it fills 128 registers, or 200 where vectors of 8 pixels need more.
    elements = max(5 * vector, 20)
    fewest = 64 // size if a + b <= 256 else 16  # whole sectors of 32 bytes, better two
    block = min(max(_power_of_two(32 * elements / (a + b)), fewest), 256)
    warps = min(_power_of_two(1.99 * (a + b) * block / (32 * elements)), 16)
    # A thread then holds many pixels of one class.
    return Tile(a, b, block, 1 if together else block // vector, warps)


def _cell_tile(classes: int, together: bool) -> Tile:
    """The tile, of cells, for interpolated logits."""
    a, b = _parts(classes, together)
    elements = 12  # for each thread: with the sums at four corners and temporaries they fill its registers
    block = 32 if a + b <= 8 else min(max(_power_of_two(8 * 32 * elements / (a + b)), 4), 16)
    warps = min(_power_of_two(1.99 * (a + b) * block / (32 * elements)), 8)
    return Tile(a, b, block, block, warps)


def _programs(device: torch.device, warps: int, images: int) -> int:
    """How many programs of so many warps to start for each image; a function of the device and the shape only."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else _INTERPRETED_PROCESSORS
    )
    return ceil(processors * max(_PROGRAMS, _WARPS // warps) / images)


# --- What a kernel is given ------------------------------------------------------------------------------------------


def _kernels() -> ModuleType:
    from softjaccard.statistics import triton_kernels

    return triton_kernels


def _pixel_stride(tensor: Tensor) -> int | None:
    """The stride between pixels in order, of (B, C, *spatial); None if there is no such."""
    sizes = [(size, step) for size, step in zip(tensor.shape[2:], tensor.stride()[2:], strict=True) if size > 1]
    if not sizes:
        return 1
    for (_, outer), (size, inner) in pairwise(sizes):
        if outer != size * inner:
            return None
    return sizes[-1][1]


def _flattened(tensor: Tensor) -> tuple[Tensor, int]:
    """The tensor (B, C, *spatial), copied if its pixels are at no regular distance, and that distance."""
    stride = _pixel_stride(tensor)
    return (tensor.contiguous(), 1) if stride is None else (tensor, stride)


def _as_bytes(tensor: Tensor) -> Tensor:
    """Maps in an order and dtype that kernels can read."""
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bool:
        return tensor.view(torch.uint8)
    return tensor.long() if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


class Case(NamedTuple):
    """Arguments that both kernels of a case share."""

    logits: Tensor
    interpolated: bool
    shared: dict[str, Any]
    tile: Tile


def _case(
    logits: Tensor,
    kind: str,
    label: Tensor,
    extra: Tensor | None,
    number: float,
    mask: Tensor | None,
    ignore_index: int,
    temperature: float,
    *,
    size: tuple[int, int] | None,
    align_corners: bool,
) -> Case:
    kernels = _kernels()
    classes = logits.shape[1]
    interpolated = size is not None and logits.shape[2:] != size
    if not interpolated:
        logits, pixel_stride = _flattened(logits)
    height, width = size or (1, logits[0, 0].numel())
    values = _as_bytes(label)
    steps: tuple[int, ...] = (height * width, 0, 0, 1)  # from an image, class, row, pixel or column to the next
    low: tuple[int, ...] = (1, 1)
    if kind == "teacher" and size is not None and label.shape[2:] != size:
        code = kernels.TEACHER_SHARED if label.shape == logits.shape else kernels.TEACHER_LOW
        values, steps, low = label, label.stride(), label.shape[2:]
    elif kind in ("teacher", "dense"):
        code = kernels.TEACHER if kind == "teacher" else kernels.DENSE
        values, stride = _flattened(label)
        steps = (values.stride(0), values.stride(1), 0, stride)
    else:
        code = kernels.INDEX if extra is None else kernels.INDEX_WHERE
    epsilon = number if kind == "smoothed" else 0.0
    shared = {
        "logits": logits,
        "logits_image": logits.stride(0),
        "logits_class": logits.stride(1),
        "label": values,
        **dict(zip(("label_image", "label_class", "label_row", "label_column"), steps, strict=True)),
        "label_height": low[0],
        "label_width": low[1],
        "where": logits if extra is None else _as_bytes(extra),  # any pointer will do where none is read
        "mask": logits if mask is None else _as_bytes(mask),
        "height": height,
        "width": width,
        "classes": classes,
        "scale": 1 / log(2) / temperature,
        "label_scale": 1 / log(2) / (number or 1.0),
        "hit": 1 - epsilon + epsilon / classes,
        "miss": epsilon / classes,
        "slack": tolerance(label.dtype) if label.is_floating_point() else 0.0,
        "ignore_index": ignore_index,
        "KIND": code.value,
        "MASK": (
            kernels.NO_MASK if mask is None else kernels.BOOLEAN if mask.dtype == torch.bool else kernels.WEIGHTS
        ).value,
        "ALIGN": align_corners,
    }
    # Threads then lie along the classes, and parts of different sizes differently: one part is quicker.
    together = 1 in (logits.stride(1), steps[1])
    if interpolated:
        tile = _cell_tile(classes, together)
        shared |= {
            "logits_row": logits.stride(2),
            "logits_column": logits.stride(3),
            "low_height": logits.shape[2],
            "low_width": logits.shape[3],
            # A single pixel has no corners apart; either way all take its value.
            "ALIGN_Y": align_corners and logits.shape[2] > 1,
            "ALIGN_X": align_corners and logits.shape[3] > 1,
        }
    else:
        tile = _tile(logits, pixel_stride, together)
        shared["logits_pixel"] = pixel_stride
    shared |= {"A": tile.a, "B": tile.b, "BLOCK": tile.pixels}
    return Case(logits, interpolated, shared, tile)


def _bits(want: tuple[str, ...]) -> int:
    return sum(1 << FIELDS.index(name) for name in want if name != "pixels")


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# --- The operators ---------------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor logits, str kind, Tensor label, Tensor? extra, float number, Tensor? mask, int ignore_index, "
    "float temperature, SymInt[]? size, bool align_corners, bool error_scaled, str want"
)


def _fused_sums(logits: Tensor, *arguments: Any) -> Tensor:
    """The sums named in ``want``, ``(len(want), B, C)``."""
    *described, size, align_corners, _, names = arguments
    case = _case(logits, *described, size=size and tuple(size), align_corners=align_corners)
    want = tuple(names.split(","))
    hard = described[0] == "hard"
    summed = tuple(name for name in FIELDS[:-1] if name in ({_HARD_SAME.get(n, n) for n in want} if hard else want))
    summed = tuple(name for name in summed if not (hard and name == "label_entropy"))
    images, classes = logits.shape[:2]
    low = logits.shape[2:]
    blocks = (
        (low[0] + 1) * ceil((low[1] + 1) / case.tile.pixels)
        if case.interpolated
        else ceil(case.shared["height"] * case.shared["width"] / case.tile.pixels)
    )
    programs = min(blocks, _programs(logits.device, case.tile.warps, images))
    partial = logits.new_empty((images, programs, len(summed), classes), dtype=torch.float32)
    counts = logits.new_empty((images, programs), dtype=torch.float32)
    kernel = _kernels().sum_cells if case.interpolated else _kernels().sum_blocks
    lanes = {} if case.interpolated else {"LANES": case.tile.lanes}
    with _on(logits.device):
        kernel[programs, images](
            **case.shared,
            **lanes,
            partial=partial,
            counts=counts,
            blocks=blocks,
            fields=len(summed),
            WANT=_bits(summed),
            num_warps=case.tile.warps,
        )
    return _finish(partial, counts, summed, want, hard)


def _finish(partial: Tensor, counts: Tensor, summed: tuple[str, ...], want: tuple[str, ...], hard: bool) -> Tensor:
    """Add up what the programs found; a NaN weight shows in every field of its image."""
    pixels = counts.sum(1, dtype=torch.float64)[:, None].expand(-1, partial.shape[3])
    found = {
        name: values.amax(1).double() if name.endswith("peak") else values.sum(1, dtype=torch.float64)
        for name, values in zip(summed, partial.unbind(2), strict=True)
    }
    for name in {"cross_entropy", "label_entropy"} & found.keys():
        found[name] *= log(2)
    if hard:
        same = {name: found[_HARD_SAME[name]] for name in _HARD_SAME if name in want}
        if "label_peak" in same:
            same["label_peak"] = (same["label_peak"] > 0).double()
        found |= same | {"label_entropy": torch.zeros_like(pixels)}
    sums = torch.stack([(found[name] if name != "pixels" else pixels) + 0 * pixels for name in want])
    return sums.float()


def _fused_gradient(gradient: Tensor, logits: Tensor, *arguments: Any) -> Tensor:
    """The gradient of the logits from the gradient ``(len(want), B, C)`` of the sums."""
    *described, size, align_corners, error_scaled, names = arguments
    case = _case(logits, *described, size=size and tuple(size), align_corners=align_corners)
    want = tuple(names.split(","))
    by_name = dict(zip(want, gradient.float() / described[-1], strict=True))
    zero = torch.zeros_like(gradient[0], dtype=torch.float32)
    upstream = torch.stack([by_name.get(name, zero) for name in _DIFFERENTIABLE])
    result = torch.empty_like(case.logits)
    given = case.shared | {
        "upstream": upstream,
        "gradient": result,
        "gradient_image": result.stride(0),
        "gradient_class": result.stride(1),
        "WANT": _bits(tuple(name for name in want if name in _DIFFERENTIABLE)),
        "ERROR_SCALED": error_scaled,
        "num_warps": case.tile.warps,
    }
    with _on(logits.device):
        (_launch_gradient_cells if case.interpolated else _launch_gradient_blocks)(case, result, given)
    return result if case.logits is logits else torch.empty_like(logits).copy_(result)


def _launch_gradient_blocks(case: Case, result: Tensor, arguments: dict[str, Any]) -> None:
    blocks = ceil(case.shared["height"] * case.shared["width"] / case.tile.pixels)
    programs = min(blocks, _programs(result.device, case.tile.warps, len(result)))
    _kernels().gradient_blocks[programs, len(result)](**arguments, gradient_pixel=_pixel_stride(result), blocks=blocks)


def _launch_gradient_cells(case: Case, result: Tensor, arguments: dict[str, Any]) -> None:
    images, _, height, width = result.shape
    columns = ceil(width / (case.tile.pixels - 1))
    # Each program computes a row of cells that its neighbour computes, too: with fewer rows that would weigh more.
    rows = max(4, height // ceil(_programs(result.device, case.tile.warps, images) / columns))
    grid = (columns, ceil(height / rows), images)
    scratch = result.new_empty((*grid, case.tile.a + case.tile.b, case.tile.pixels + 1), dtype=torch.float32)
    _kernels().gradient_cells[grid](
        **arguments,
        gradient_row=result.stride(2),
        gradient_column=result.stride(3),
        scratch=scratch,
        cell_rows=rows,
    )


_sums_operator = torch.library.custom_op(
    "softjaccard::fused_sums", _fused_sums, mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor"
)
_gradient_operator = torch.library.custom_op(
    "softjaccard::fused_gradient", _fused_gradient, mutates_args=(), schema=f"(Tensor gradient, {_ARGUMENTS}) -> Tensor"
)


def _fake_sums(logits: Tensor, *arguments: Any) -> Tensor:
    return logits.new_empty((len(arguments[-1].split(",")), *logits.shape[:2]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[object, ...], output: Tensor) -> None:
    ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))
    ctx.plain = [None if isinstance(value, Tensor) else value for value in inputs]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    tensors, plain = ctx.saved_tensors, ctx.plain
    inputs = [value if tensor is None else tensor for tensor, value in zip(tensors, plain, strict=True)]
    return _gradient_operator(gradient, *inputs), *(None,) * (len(inputs) - 1)


def _no_double_backward(ctx: Any, gradient: Tensor) -> None:
    raise RuntimeError("the triton backend gives no double backward; use backend='reference'")


_sums_operator.register_fake(_fake_sums)
_gradient_operator.register_fake(lambda gradient, logits, *arguments: torch.empty_like(logits))
_sums_operator.register_autograd(_backward, setup_context=_save)
_gradient_operator.register_autograd(_no_double_backward)


def fused(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> dict[str, Tensor]:
    """The sums ``(B, C)`` in ``options.want``; ``mask`` is ``(B, 1, *spatial)``."""
    reason = supports(logits, label, mask, options)
    if reason is not None:
        raise ValueError(f"backend: 'triton' can't take this case because {reason}; use 'auto' or 'chunked'")
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
        options.temperature,
        options.size,
        options.align_corners,
        options.error_scaled,
        ",".join(options.want),
    )
    differentiable = dict(zip(options.want, sums, strict=True))
    return {name: value if name in _DIFFERENTIABLE else value.detach() for name, value in differentiable.items()}

"""The ``triton`` backend: one kernel forward, one backward, on CUDA devices.

Both read the logits once and keep them in registers. Nothing of the logits' size is written but their gradient, and
logits of a lower resolution are interpolated in registers. The sums of each program go to a buffer of their own, which
torch then adds up, so that the same input gives the same sums, bit for bit. The kernels themselves are in
:mod:`softjaccard.statistics.triton_kernels`; triton is imported when the first of them runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from itertools import pairwise
from math import ceil, log, log2, prod
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softjaccard.labels.checks import describe, tolerance
from softjaccard.labels.kinds import DenseLabel, HardLabel, Label, RaterLabel, SmoothedLabel, TeacherLabel
from softjaccard.statistics.operators import DIFFERENTIABLE, make_backend
from softjaccard.statistics.pixels import FIELDS, Options

MOST_CLASSES = 1024
#: Kernels take logarithms of base 2: what natural ones are multiplied with.
_BASE = 1 / log(2)
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
        reason = f"the label is a {type(label).__name__}"
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


def _warps(elements: int, each: int, most: int) -> int:
    """How many warps hold so many elements with at most so many in ``each`` thread; a power of two."""
    return min(1 << ceil(log2(max(1, elements / (32 * each)))), most)


def _parts(classes: int, whole: bool = False) -> tuple[int, int]:
    """The rows for so many classes: two powers of two where they waste less than one does, unless ``whole``.

    A thread has about five rows. Of the smaller part it should have at least one, or threads would hold copies: with
    128 + 4 rows the compiler makes code that hardly moves.
    """
    a = _power_of_two(classes)
    b = max(4, a // 4, 1 << (classes - a - 1).bit_length()) if classes > a else 0
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
    warps = _warps((a + b) * block, elements, 16)
    # A thread then holds many pixels of one class.
    return Tile(a, b, block, 1 if together else block // vector, warps)


def _cell_tile(classes: int, together: bool) -> Tile:
    """The tile, of cells, for interpolated logits."""
    a, b = _parts(classes, together)
    elements = 10  # for each thread: with the sums at four corners and temporaries they fill its registers
    block = 32 if a + b <= 8 else min(max(_power_of_two(8 * 32 * elements / (a + b)), 4), 16)
    warps = _warps((a + b) * block, elements, 8)
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


def _as_map(tensor: Tensor) -> Tensor:
    """A map (B, *spatial) in an order and dtype that kernels can read."""
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bool:
        return tensor.view(torch.uint8)
    return tensor.long() if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


def _of_label(label: Label, logits: Tensor, options: Options) -> dict[str, Any]:
    """Arguments that say what the label is."""
    kernels, classes = _kernels(), logits.shape[1]
    height, width = options.size or (1, logits[0, 0].numel())
    # From an image, class, row, pixel or column to the next.
    steps: tuple[int, ...] = (height * width, 0, 0, 1)
    low: tuple[int, ...] = (1, 1)
    # Any pointer will do where none is read, and any number where none is used.
    where, temperature, epsilon, slack = logits, 1.0, 0.0, 0.0
    match label:
        case HardLabel(index):
            code, values = kernels.INDEX, _as_map(index)
        case SmoothedLabel(index, epsilon, chosen):
            code, values = kernels.INDEX, _as_map(index)
            if chosen is not None:
                code, where = kernels.INDEX_WHERE, _as_map(chosen)
        case TeacherLabel(teacher, own):
            temperature = options.temperature if own is None else own
            if options.size is None or teacher.shape[2:] == options.size:
                code, (values, stride) = kernels.TEACHER, _flattened(teacher)
                steps = (values.stride(0), values.stride(1), 0, stride)
            else:
                code = kernels.TEACHER_SHARED if teacher.shape == logits.shape else kernels.TEACHER_LOW
                values, steps, low = teacher, teacher.stride(), teacher.shape[2:]
        case DenseLabel(probability):
            code, (values, stride) = kernels.DENSE, _flattened(probability)
            steps = (values.stride(0), values.stride(1), 0, stride)
            slack = tolerance(probability.dtype)
    return {
        "KIND": code.value,
        "label": values,
        **dict(zip(("label_image", "label_class", "label_row", "label_column"), steps, strict=True)),
        "label_height": low[0],
        "label_width": low[1],
        "where": where,
        "label_scale": _BASE / temperature,
        "hit": 1 - epsilon + epsilon / classes,
        "miss": epsilon / classes,
        "slack": slack,
    }


def _of_mask(mask: Tensor | None, logits: Tensor) -> dict[str, Any]:
    kernels = _kernels()
    if mask is None:
        return {"MASK": kernels.NO_MASK.value, "mask": logits}
    return {"MASK": (kernels.BOOLEAN if mask.dtype == torch.bool else kernels.WEIGHTS).value, "mask": _as_map(mask)}


class Case(NamedTuple):
    """What both kernels of a case are given."""

    logits: Tensor
    """The logits, copied if kernels could not read them."""
    interpolated: bool
    tile: Tile
    shared: dict[str, Any]

    @property
    def images(self) -> int:
        """B."""
        return len(self.logits)

    def blocks(self) -> int:
        """How many tiles an image has."""
        if self.interpolated:
            height, width = self.logits.shape[2:]
            return (height + 1) * ceil((width + 1) / self.tile.pixels)
        pixels: int = self.shared["height"] * self.shared["width"]
        return ceil(pixels / self.tile.pixels)

    def programs(self) -> int:
        """How many programs to start for each image; a function of the device and the shape only."""
        return _programs(self.logits.device, self.tile.warps, self.images)


def _case(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> Case:
    interpolated = options.size is not None and logits.shape[2:] != options.size
    pixel_stride = 0
    if not interpolated:
        logits, pixel_stride = _flattened(logits)
    height, width = options.size or (1, logits[0, 0].numel())
    shared = {
        "logits": logits,
        "logits_image": logits.stride(0),
        "logits_class": logits.stride(1),
        **_of_label(label, logits, options),
        **_of_mask(mask, logits),
        "height": height,
        "width": width,
        "classes": logits.shape[1],
        "scale": _BASE / options.temperature,
        "ignore_index": options.ignore_index,
        "ALIGN": options.align_corners,
    }
    # Threads then lie along the classes, and those of two parts differently: one part is quicker.
    together = 1 in (shared["logits_class"], shared["label_class"])
    if interpolated:
        tile = _cell_tile(logits.shape[1], together)
        shared |= {
            "logits_row": logits.stride(2),
            "logits_column": logits.stride(3),
            "low_height": logits.shape[2],
            "low_width": logits.shape[3],
            # A single pixel has no corners apart; either way all take its value.
            "ALIGN_Y": options.align_corners and logits.shape[2] > 1,
            "ALIGN_X": options.align_corners and logits.shape[3] > 1,
        }
    else:
        tile = _tile(logits, pixel_stride, together)
        shared["logits_pixel"] = pixel_stride
    return Case(logits, interpolated, tile, shared | {"A": tile.a, "B": tile.b, "BLOCK": tile.pixels})


def _bits(want: Iterable[str]) -> int:
    return sum(1 << FIELDS.index(name) for name in want)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# --- Sums ------------------------------------------------------------------------------------------------------------


def _sums(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> Tensor:
    """The sums named in ``want``, ``(len(want), B, C)``."""
    case = _case(logits, label, mask, options)
    needed = set(options.want) - {"pixels"}
    if isinstance(label, HardLabel):
        needed = {_HARD_SAME.get(name, name) for name in needed} - {"label_entropy"}
    summed = tuple(name for name in FIELDS if name in needed)
    programs = min(case.blocks(), case.programs())
    partial = logits.new_empty((case.images, programs, len(summed), logits.shape[1]), dtype=torch.float32)
    counts = logits.new_empty((case.images, programs), dtype=torch.float32)
    kernel = _kernels().sum_cells if case.interpolated else _kernels().sum_blocks
    lanes = {} if case.interpolated else {"LANES": case.tile.lanes}
    with _on(logits.device):
        kernel[programs, case.images](
            **case.shared,
            **lanes,
            partial=partial,
            counts=counts,
            blocks=case.blocks(),
            fields=len(summed),
            WANT=_bits(summed),
            num_warps=case.tile.warps,
        )
    found = _add_up(partial, counts, summed)
    if isinstance(label, HardLabel):
        found |= {name: found[same] for name, same in _HARD_SAME.items() if same in found}
        found["label_entropy"] = 0 * found["pixels"]
        if "label_peak" in options.want:
            found["label_peak"] = torch.where(found["label"] > 0, 1.0, 0 * found["label"])
    return torch.stack([found[name] for name in options.want]).float()


def _add_up(partial: Tensor, counts: Tensor, summed: tuple[str, ...]) -> dict[str, Tensor]:
    """What the programs found together, by name, (B, C) in float64."""
    sums = partial.sum(1, dtype=torch.float64)
    pixels = counts.sum(1, dtype=torch.float64)[:, None].expand(-1, partial.shape[3])
    for place, name in enumerate(summed):
        if name.endswith("peak"):
            sums[:, place] = partial[:, :, place].amax(1)
        if name.endswith("entropy"):
            sums[:, place] /= _BASE
    sums += 0 * pixels[:, None]  # one invalid pixel makes all of its image NaN
    return dict(zip(summed, sums.unbind(1), strict=True)) | {"pixels": pixels}


# --- Gradient --------------------------------------------------------------------------------------------------------


def _gradient(upstream: Tensor, logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> Tensor:
    """The gradient of the logits from the gradient ``(len(want), B, C)`` of the sums."""
    case = _case(logits, label, mask, options)
    by_name = dict(zip(options.want, upstream.float() / options.temperature, strict=True))
    zero = torch.zeros_like(upstream[0], dtype=torch.float32)
    result = torch.empty_like(case.logits)
    given = case.shared | {
        "upstream": torch.stack([by_name.get(name, zero) for name in DIFFERENTIABLE]),
        "gradient": result,
        "gradient_image": result.stride(0),
        "gradient_class": result.stride(1),
        "WANT": _bits(by_name.keys() & set(DIFFERENTIABLE)),
        "ERROR_SCALED": options.error_scaled,
        "num_warps": case.tile.warps,
    }
    with _on(logits.device):
        (_launch_cells if case.interpolated else _launch_blocks)(case, result, given)
    return result if case.logits is logits else torch.empty_like(logits).copy_(result)


def _launch_blocks(case: Case, result: Tensor, given: dict[str, Any]) -> None:
    programs = min(case.blocks(), case.programs())
    _kernels().gradient_blocks[programs, case.images](
        **given, gradient_pixel=_pixel_stride(result), blocks=case.blocks()
    )


def _launch_cells(case: Case, result: Tensor, given: dict[str, Any]) -> None:
    height, width = result.shape[2:]
    columns = ceil(width / (case.tile.pixels - 1))
    # Each program computes a row of cells that its neighbour computes, too: of fewer rows that would be a larger part.
    rows = max(4, height // ceil(case.programs() / columns))
    grid = (columns, ceil(height / rows), case.images)
    scratch = result.new_empty((*grid, case.tile.a + case.tile.b, case.tile.pixels + 1), dtype=torch.float32)
    _kernels().gradient_cells[grid](
        **given, gradient_row=result.stride(2), gradient_column=result.stride(3), scratch=scratch, cell_rows=rows
    )


_backend = make_backend("triton", _sums, _gradient)


def fused(logits: Tensor, label: Label, mask: Tensor | None, options: Options) -> dict[str, Tensor]:
    """The sums ``(B, C)`` in ``options.want``; ``mask`` is ``(B, 1, *spatial)``.

    Raises:
        ValueError: the case is none for this backend, or label or mask requires grad.
    """
    reason = supports(logits, label, mask, options)
    if reason is not None:
        raise ValueError(f"backend: 'triton' can't take this case because {reason}; use 'auto' or 'chunked'")
    return _backend(logits, label, mask, options)

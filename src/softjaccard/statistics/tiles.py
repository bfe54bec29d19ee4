"""Parts of the pixels, one after the other: what the chunked backend walks over.

A tile holds all channels of some pixels as ``(b, C, n)``. Where logits have a lower resolution than the label, a tile
is a band of the label's rows, interpolated from the few rows of logits under it, rows first and then columns; its
gradient goes the same way back. Sums over pixels don't depend on their order, so that a tile may hold its pixels in
whatever order is fastest to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from softjaccard.statistics.pixels import Options, sum_dtype
from softjaccard.statistics.threads import in_threads

#: Logits in a tile on the CPU: small enough for the caches, large enough that threads seldom wait for Python.
TILE_ELEMENTS = 2**19
#: On other devices a tile has to outweigh the launches of its kernels, some 0.1 ms; estimated, not measured.
DEVICE_TILE_ELEMENTS = 2**23

Tile = tuple[slice, ...]
Result = TypeVar("Result")


def tiles(shape: tuple[int, ...], device: torch.device) -> Iterator[Tile]:
    """Cut ``(B, C, *spatial)`` into tiles of at most so many elements: several small images, or a part of one."""
    images, channels, *spatial = shape
    elements = TILE_ELEMENTS if device.type == "cpu" else DEVICE_TILE_ELEMENTS
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


class Workspace:
    """Memory that a thread uses again for each of its tiles.

    Fresh memory would be given back to the system after each tile and cost a page fault for every 4 KiB of the next.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised memory of this shape, with the dtype of the sums and on the device of ``like``.

        What was taken under the same name before is overwritten.
        """
        held, size = self._held.get(name), prod(shape)
        if held is None or held.numel() < size:
            held = self._held[name] = torch.empty(size, dtype=sum_dtype(like.dtype), device=like.device)
        return held[:size].view(shape)


class _Axis(NamedTuple):
    """How positions along one axis of the target are interpolated: between ``lower`` and ``upper``, by ``weight``."""

    lower: Tensor
    upper: Tensor
    weight: Tensor

    @staticmethod
    def between(source: int, target: int, align_corners: bool) -> _Axis:
        """The axis of the definition that torch and others use."""
        position = torch.arange(target, dtype=torch.float64, device="cpu")
        if align_corners:
            position *= (source - 1) / max(target - 1, 1)
        else:
            position = ((position + 0.5) * (source / target) - 0.5).clamp(min=0)
        lower = position.long().clamp(max=source - 1)
        return _Axis(lower, (lower + 1).clamp(max=source - 1), position - lower)

    def to(self, like: Tensor) -> _Axis:
        """On the device of ``like``, with weights in the dtype of the sums."""
        weight = self.weight.to(dtype=sum_dtype(like.dtype), device=like.device)
        return _Axis(self.lower.to(like.device), self.upper.to(like.device), weight)


class Interpolation:
    """The way from ``(B, C, h, w)`` to bands of rows of ``(B, C, H, W)``, and back for gradients.

    Where W is a multiple of w, the columns of a band come in ``phases``: all those that lie alike between their two
    neighbours, then the next. Each phase is one weighted sum of whole rows.
    """

    def __init__(self, source: Tensor, options: Options, order: int | None = None) -> None:
        """From the resolution of ``source`` to that of ``options``; ``order`` is the phases of the tile's pixels."""
        assert options.size is not None
        self.source, self.size = source, options.size
        self.identity = source.shape[2:] == options.size
        height, width = source.shape[2:]
        rows = _Axis.between(height, self.size[0], options.align_corners)
        self.rows, self.columns = (
            axis.to(source) for axis in (rows, _Axis.between(width, self.size[1], options.align_corners))
        )
        # Plain numbers: to read them from a device would stall it for each band.
        self.first, self.last = rows.lower.tolist(), rows.upper.tolist()
        whole = not options.align_corners and self.size[1] % width == 0
        self.phases = self.size[1] // width if whole else 1
        self.order = self.phases if order is None else order

    def band(self, tile: Tile, workspace: Workspace, name: str) -> Tensor:
        """The interpolated values ``(b, C, n)`` of a tile, contiguous."""
        images, band = tile
        if self.identity:
            return _copy(_in_order(self.source[images, :, band], self.order), workspace, name, self.source)
        values, _ = self._between_rows(images, band)
        out = workspace.take(name, (*values.shape[:3], self.size[1]), self.source)
        if self.phases == self.order != 1:
            padded = torch.cat((values[..., :1], values, values[..., -1:]), -1)
            width = values.shape[-1]
            by_phase = out.view(*out.shape[:3], self.phases, width)
            for phase, (start, share) in enumerate(self._neighbours()):
                first, second = padded[..., start : start + width], padded[..., start + 1 : start + 1 + width]
                torch.lerp(first, second, share, out=by_phase[..., phase, :])
            return out.flatten(2)
        lower, upper, weight = self.columns
        torch.lerp(values.index_select(3, lower), values.index_select(3, upper), weight, out=out)
        return (
            out.flatten(2) if self.order == 1 else _copy(_in_order(out, self.order), workspace, f"{name} in order", out)
        )

    def gather(self, gradient: Tensor, tile: Tile) -> tuple[slice, Tensor]:
        """The rows of the source under a tile, and their gradient ``(b, C, rows, w)`` from the tile's ``(b, C, n)``."""
        rows, part = self._rows_under(tile[1])
        width = self.source.shape[3]
        gradient = gradient.view(*gradient.shape[:2], len(rows.weight), -1)
        if self.phases > 1:
            padded = gradient.new_zeros((*gradient.shape[:3], width + 2))
            by_phase = gradient.view(*gradient.shape[:3], self.phases, width)
            for phase, (start, share) in enumerate(self._neighbours()):
                padded[..., start : start + width].add_(by_phase[..., phase, :], alpha=1 - share)
                padded[..., start + 1 : start + 1 + width].add_(by_phase[..., phase, :], alpha=share)
            across = padded[..., 1:-1]
            across[..., 0] += padded[..., 0]
            across[..., -1] += padded[..., -1]
        else:
            across = _spread(gradient, 3, self.columns, width)
        return part, _spread(across, 2, rows, part.stop - part.start)

    def _neighbours(self) -> Iterator[tuple[int, float]]:
        """For each phase the first of its two neighbours, 0 for the one before, and the weight of the second."""
        for phase in range(self.phases):
            offset = (phase + 0.5) / self.phases - 0.5
            yield (0, offset + 1) if offset < 0 else (1, offset)

    def _rows_under(self, band: slice) -> tuple[_Axis, slice]:
        part = slice(self.first[band][0], self.last[band][-1] + 1)
        lower, upper, weight = (values[band] for values in self.rows)
        return _Axis(lower - part.start, upper - part.start, weight), part

    def _between_rows(self, images: slice, band: slice) -> tuple[Tensor, slice]:
        """The band's rows, still as wide as the source."""
        (lower, upper, weight), part = self._rows_under(band)
        values = self.source[images, :, part].to(sum_dtype(self.source.dtype))
        first, second = values.index_select(2, lower), values.index_select(2, upper)
        return first.lerp_(second, weight[:, None]), part


def _spread(gradient: Tensor, dim: int, axis: _Axis, size: int) -> Tensor:
    """The adjoint of interpolation along one dimension."""
    shape = list(gradient.shape)
    shape[dim] = size
    weight = axis.weight.view(-1, *[1] * (gradient.ndim - 1 - dim))
    upper = gradient * weight
    result = gradient.new_zeros(shape)
    return result.index_add_(dim, axis.lower, gradient - upper).index_add_(dim, axis.upper, upper)


def _in_order(values: Tensor, phases: int) -> Tensor:
    """``(..., W)`` as ``(..., phases, W / phases)``, the columns of one phase side by side."""
    return values.view(*values.shape[:-1], -1, phases).transpose(-1, -2) if phases > 1 else values


def _copy(values: Tensor, workspace: Workspace, name: str, like: Tensor) -> Tensor:
    """A contiguous copy ``(b, K, n)``, in the dtype of the sums."""
    return workspace.take(name, tuple(values.shape), like).copy_(values).flatten(2)


class Tiles:
    """The tiles of one call: what is in each, and where its gradient goes."""

    def __init__(self, logits: Tensor, options: Options) -> None:
        """Plan the tiles of ``(B, C, *spatial)``, or of its interpolation."""
        self.logits, self.options = logits, options
        self.interpolation = None
        if options.size is not None and logits.shape[2:] != options.size:
            self.interpolation = Interpolation(logits, options)
        self.order = 1 if self.interpolation is None else self.interpolation.order
        shape = tuple(logits.shape)
        if options.size is not None:  # whole rows only
            shape = (shape[0], shape[1] * options.size[1], options.size[0])
        self.all = list(tiles(shape, logits.device))

    def values(self, tile: Tile, workspace: Workspace) -> Tensor:
        """The logits of a tile, divided by the temperature: ``(b, C, n)``, contiguous, free to be overwritten."""
        if self.interpolation is None:
            values = _copy(self.logits[_with_channels(tile)], workspace, "logits", self.logits)
        else:
            values = self.interpolation.band(tile, workspace, "logits")
        return values if self.options.temperature == 1 else values.div_(self.options.temperature)

    def cut(self, tensor: Tensor, tile: Tile) -> Tensor:
        """A tile of ``(B, *spatial)`` as ``(b, n)``, or of ``(B, K, *spatial)`` as ``(b, K, n)``."""
        if tensor.ndim == self.logits.ndim:
            return _in_order(tensor[_with_channels(tile)], self.order).flatten(2)
        return _in_order(tensor[tile], self.order).flatten(1)

    def in_place(self, values: Tensor, tile: Tile) -> Tensor:
        """The values ``(b, n)`` of a tile's pixels as the part ``(b, *spatial)`` of a whole map."""
        if self.interpolation is None:
            return values.view(self.logits[:, 0][tile].shape)
        width = self.interpolation.size[1]
        by_phase = values.view(len(values), -1, self.order, width // self.order)
        return by_phase.transpose(2, 3).reshape(len(values), -1, width)

    def target(self, result: Tensor, tile: Tile) -> Tensor | None:
        """The gradient's place in ``result`` as ``(b, C, n)``; None if no view of it has that shape and dtype."""
        if self.interpolation is not None or result.dtype != sum_dtype(result.dtype):
            return None
        place = result[_with_channels(tile)]
        try:
            return place.view(*place.shape[:2], -1)
        except RuntimeError:
            return None

    def put(self, result: Tensor, gradient: Tensor, tile: Tile) -> tuple[slice, Tensor] | None:
        """Put the gradient ``(b, C, n)`` of a tile into its place, or return the rows to which it is to be added."""
        if self.interpolation is not None:
            return self.interpolation.gather(gradient, tile)
        place = result[_with_channels(tile)]
        place.copy_(gradient.view(place.shape))
        return None

    def for_each(self, work: Callable[[Tile, Workspace], Result]) -> Iterator[tuple[Tile, Result]]:
        """The tiles and their results, in order."""
        yield from zip(self.all, in_threads(work, self.all, Workspace, self.logits.device), strict=True)


def _with_channels(tile: Tile) -> Tile:
    return (tile[0], slice(None), *tile[1:])

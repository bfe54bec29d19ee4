"""Masks: images whose pixels say which class they are of, by an id or by a colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from softjaccard.data.colours import hex_colour
from softjaccard.data.images import open_image, refuse_frames
from softjaccard.errors import InputError

_EXACT_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
_LOSSY_COMPRESSIONS = ("jpeg", "tiff_jpeg", "webp")
"""Of TIFF files."""
_MOST_SHOWN = 8


def read_index_mask(path: Path) -> np.ndarray:
    """Read a mask of ids: grey of 8 or 16 bits, 1 bit, or a palette, whose colours do not matter.

    Returns:
        Unsigned integers (H, W).

    Raises:
        InputError: If the file is missing, damaged, of a lossy format, has several frames, or colours.
    """
    image = _open_mask(path)
    # Older versions of Pillow open 16-bit PNGs as "I".
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode not in ("1", "L", "P") and not wide:
        raise InputError(
            f"{path} has mode {image.mode}; expected one id for each pixel: a grey image of 8 or 16 bits, or a palette."
        )
    return np.asarray(image).astype(np.uint16 if wide else np.uint8)


def read_colour_mask(path: Path) -> np.ndarray:
    """Read a mask of colours: RGB, a palette, or RGBA without transparency.

    Returns:
        Uint8 (H, W, 3).

    Raises:
        InputError: If the file is missing, damaged, of a lossy format, has several frames, no colours, or transparency.
    """
    image = _open_mask(path)
    if image.mode not in ("RGB", "P", "RGBA"):
        raise InputError(f"{path} has mode {image.mode}; expected colours: RGB, or a palette.")
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        raise InputError(f"{path} has transparent pixels; expected a mask of opaque colours.")
    return np.asarray(image.convert("RGB"))


def _open_mask(path: Path) -> Image.Image:
    image = open_image(path)
    refuse_frames(image, path)
    if image.format not in _EXACT_FORMATS:
        raise InputError(
            f"{path} is a {image.format} file, which may change values; expected a mask as {', '.join(_EXACT_FORMATS)}."
        )
    compression = image.info.get("compression")
    if compression in _LOSSY_COMPRESSIONS:
        raise InputError(
            f"{path} is a TIFF file with {compression} compression, which may change values; expected one without."
        )
    return image


def pack_colours(colours: np.ndarray) -> np.ndarray:
    """Write each colour as one number, 0xRRGGBB.

    Args:
        colours: Uint8 (..., 3).

    Example:
        >>> hex(pack_colours(np.array([255, 0, 16], np.uint8)))
        '0xff0010'
    """
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    packed: np.ndarray = red << 16 | green << 8 | blue
    return packed


def show_packed(value: int) -> str:
    """Write a packed colour as CSS does."""
    return hex_colour((value >> 16, value >> 8 & 255, value & 255))


@dataclass(frozen=True)
class MaskValues:
    """Which values a data set's masks may have, and the class of each.

    Attributes:
        classes: From a value in a file to the class's id, or to `ignore_index`.
        ignore_index: The id of pixels that do not count.
        show: How a value is written in messages.
        hint: What the user could do about other values; the end of the message.

    Example:
        >>> values = MaskValues({0: 255, 7: 0, 8: 1}, ignore_index=255)
        >>> values.to_ids(np.array([[7, 0, 8]], np.uint8), Path("mask.png"))
        array([[  0, 255,   1]], dtype=uint8)
        >>> values.to_ids(np.array([[7, 9, 9]], np.uint8), Path("mask.png"))
        Traceback (most recent call last):
        ...
        softjaccard.errors.InputError: mask.png holds 9 (2 pixels); expected 0, 7 to 8.
    """

    classes: Mapping[int, int]
    ignore_index: int
    show: Callable[[int], str] = str
    hint: str = ""

    @cached_property
    def _table(self) -> np.ndarray:
        """The id of each value; -1 where there is none, and at the end, for all values above."""
        table = np.full(max(self.classes) + 2, -1, np.int32)
        table[list(self.classes)] = list(self.classes.values())
        return table

    def to_ids(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Return the class ids of a mask, in the smallest unsigned type that holds `ignore_index`.

        Args:
            values: Unsigned integers (H, W).
            path: Where they are from.

        Raises:
            InputError: If a value is not among the data set's.
        """
        ids = np.take(self._table, values, mode="clip")
        if ids.min() < 0:
            unknown, counts = np.unique(values[ids < 0], return_counts=True)
            shown = [f"{self.show(int(v))} ({n} pixels)" for v, n in zip(unknown, counts, strict=True)]
            more = f" and {len(shown) - _MOST_SHOWN} other values" if len(shown) > _MOST_SHOWN else ""
            raise InputError(
                f"{path} holds {', '.join(shown[:_MOST_SHOWN])}{more}; expected {self._expected()}.{self.hint}"
            )
        return ids.astype(np.min_scalar_type(self.ignore_index))

    def _expected(self) -> str:
        """Write the valid values, stretches of neighbours as such."""
        values = sorted(self.classes)
        starts = [values[0], *(later for earlier, later in pairwise(values) if later > earlier + 1)]
        ends = [*(earlier for earlier, later in pairwise(values) if later > earlier + 1), values[-1]]
        stretches = zip(starts, ends, strict=True)
        return ", ".join(self.show(a) if a == b else f"{self.show(a)} to {self.show(b)}" for a, b in stretches)

"""Image files, and which of them can be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from softjaccard.errors import InputError, first_line

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")

FIRST = 3
"""Images that are read when a data set is opened."""


def pictures_in(folder: Path) -> list[Path]:
    """Return the files in a folder and its sub-folders that have a picture's ending, in order; nothing hidden."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PICTURE_ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    try:
        yield
    # A damaged file can make a decoder stumble over anything.
    except Exception as error:
        raise InputError(f"{path} cannot be read as an image: {first_line(error)}") from error


def open_image(path: Path) -> Image.Image:
    """Open and decode a file.

    Raises:
        InputError: If it is missing, damaged, or no image.
    """
    with _damage_of(path):
        image = Image.open(path)
        image.load()
    return image


def open_picture(path: Path) -> Image.Image:
    """Open a picture the way up that viewers show it (EXIF orientation).

    Raises:
        InputError: If the file is missing, damaged, no image, has several frames, or pixels of 32 bits (integers or
            floats, whose range is unknown).
    """
    image = open_image(path)
    refuse_frames(image, path)
    # Older versions of Pillow open 16-bit PNGs as "I".
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise InputError(f"{path} has 32-bit pixels (mode {image.mode}); expected 8 or 16 bits for each channel.")
    with _damage_of(path):
        return ImageOps.exif_transpose(image)


def refuse_frames(image: Image.Image, path: Path) -> None:
    """Raise InputError if an image file holds several."""
    # A camera's JPEG may hold smaller versions of itself ("MPO").
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise InputError(f"{path} has {frames} frames; expected a single image.")


def read_image(path: Path) -> Tensor:
    """Read a picture as a network takes it, the way up that viewers show it (EXIF orientation).

    Grey values are repeated for the three colours; 16-bit ones count as parts of 65535. An alpha channel is left out.

    Returns:
        Float32 (3, H, W) in [0, 1].

    Raises:
        InputError: As `open_picture`.
    """
    image = open_picture(path)
    if _is_wide(image):
        grey = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)
        return grey.expand(3, -1, -1).contiguous()
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous().float() / 255


def read_rgb(path: Path) -> Image.Image:
    """Read a picture in 8 bits for each of three colours: as `read_image`, but 16-bit values are rounded.

    Raises:
        InputError: As `open_picture`.
    """
    image = open_picture(path)
    if _is_wide(image):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGB")


def _is_wide(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")

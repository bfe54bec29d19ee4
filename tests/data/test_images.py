"""Image files of every kind that comes along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softjaccard.data.images import read_image
from softjaccard.errors import InputError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)


def test_colours_and_grey(tmp_path: Path) -> None:
    alpha = np.dstack([COLOUR, GREY])
    for name, pixels, expected in (
        ("colour.png", COLOUR, COLOUR),
        ("colour.bmp", COLOUR, COLOUR),
        ("colour.tif", COLOUR, COLOUR),
        ("alpha.png", alpha, COLOUR),
        ("grey.png", GREY, GREY[..., None].repeat(3, 2)),
        ("bits.png", GREY > 100, (GREY > 100)[..., None].repeat(3, 2) * 255),
    ):
        Image.fromarray(pixels).save(tmp_path / name)
        image = read_image(tmp_path / name)
        assert image.dtype == torch.float32
        assert np.array_equal(image.numpy(), expected.transpose(2, 0, 1).astype(np.float32) / 255), name
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png")[1].numpy(), GREY.astype(np.float32) / 255)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits(tmp_path: Path, ending: str) -> None:
    pixels = np.array([[0, 1, 256], [4660, 32768, 65535]], dtype=np.uint16)
    path = tmp_path / f"wide.{ending}"
    Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.shape == (3, 2, 3)
    for channel in image.numpy():
        np.testing.assert_allclose(channel, pixels / 65535, rtol=1e-6)


def test_a_photograph_is_read_the_way_up_that_viewers_show_it(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOUR)
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(COLOUR, -1).transpose(2, 0, 1).astype(np.float32) / 255
    assert np.array_equal(read_image(tmp_path / "turned.png").numpy(), expected)


def test_a_cameras_preview_is_left_out(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 8), (value,) * 3) for value in (60, 200)]
    pictures[0].save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=pictures[1:])
    assert Image.open(tmp_path / "camera.jpg").n_frames == 2
    torch.testing.assert_close(read_image(tmp_path / "camera.jpg"), torch.full((3, 8, 16), 60 / 255), atol=0.01, rtol=0)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(COLOUR.repeat(50, 0).repeat(50, 1)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-400])
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(GREY.astype(np.int32)).save(tmp_path / "integer.tif")
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "frames.tif", save_all=True, append_images=frames[1:])
    for name, words in {
        "text.png": "cannot be read as an image",
        "cut.jpg": "cannot be read as an image",
        "missing.png": "cannot be read as an image",
        "float.tif": "has 32-bit pixels",
        "integer.tif": "has 32-bit pixels",
        "frames.tif": "has 2 frames",
    }.items():
        with pytest.raises(InputError, match=f"{name} {words}"):
            read_image(tmp_path / name)

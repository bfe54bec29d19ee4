"""Images, masks and lists of every kind that comes along, as all data sets of files read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_camvid import draw_camvid
from softjaccard.data.camvid import CamVid
from softjaccard.data.masks import MaskValues, read_colour_mask, read_index_mask
from softjaccard.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (48, 64), np.uint8)
COLOUR = RNG.integers(0, 256, (48, 64, 3), np.uint8)
WIDE = RNG.integers(0, 65536, (48, 64), np.uint16)
IDS = RNG.integers(0, 12, (48, 64), np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_camvid(tmp_path / "camvid")


def mask_path(root: Path) -> Path:
    return root / "annotations" / "train" / "train_0.png"


def with_palette(ids: np.ndarray, palette: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids, "P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


PALETTE = RNG.integers(0, 256, (256, 3))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray(GREY), GREY[..., None].repeat(3, 2)),
        (Image.fromarray(np.dstack([GREY, GREY[::-1]]), "LA"), GREY[..., None].repeat(3, 2)),
        (Image.fromarray(np.dstack([COLOUR, GREY]), "RGBA"), COLOUR),
        (with_palette(GREY, PALETTE), PALETTE[GREY]),
        (Image.fromarray(GREY > 99), (GREY > 99)[..., None].repeat(3, 2) * 255),
        (Image.fromarray(WIDE), np.rint(WIDE / 257)[..., None].repeat(3, 2)),
    ],
    ids=["grey", "grey with alpha", "colours with alpha", "palette", "1 bit", "16 bits"],
)
def test_kinds_of_images(root: Path, picture: Image.Image, expected: np.ndarray) -> None:
    picture.save(root / "images" / "train" / "train_0.jpg", "PNG")
    image = CamVid(root)[0]["image"]
    assert np.array_equal(image.numpy(), expected.transpose(2, 0, 1).astype(np.float32) / 255)


def test_a_photograph_is_turned_as_its_mask_was_drawn(root: Path) -> None:
    picture = Image.fromarray(COLOUR.transpose(1, 0, 2))
    exif = picture.getexif()
    exif[0x0112] = 5  # transposed
    picture.save(root / "images" / "train" / "train_0.jpg", "PNG", exif=exif)
    expected = COLOUR.transpose(2, 0, 1).astype(np.float32) / 255
    assert np.array_equal(CamVid(root)[0]["image"].numpy(), expected)


@pytest.mark.parametrize(
    "mask",
    [Image.fromarray(IDS), with_palette(IDS, PALETTE), Image.fromarray(IDS.astype(np.uint16))],
    ids=["8 bits", "palette", "16 bits"],
)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"})],
    ids=["PNG", "TIFF", "TIFF with LZW", "TIFF with deflate"],
)
def test_kinds_of_index_masks(root: Path, mask: Image.Image, kind: str, settings: dict[str, str]) -> None:
    mask.save(mask_path(root), kind, **settings)
    label = CamVid(root)[0]["label"]
    assert label.dtype == torch.int64
    assert np.array_equal(label.numpy(), IDS)


def test_masks_of_one_bit(tmp_path: Path) -> None:
    Image.fromarray(GREY > 99).save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == "1"
    assert np.array_equal(read_index_mask(tmp_path / "mask.png"), GREY > 99)


def test_kinds_of_colour_masks(tmp_path: Path) -> None:
    opaque = np.dstack([COLOUR, np.full_like(GREY, 255)])
    for image, expected in (
        (Image.fromarray(COLOUR), COLOUR),
        (Image.fromarray(opaque, "RGBA"), COLOUR),
        (with_palette(IDS, PALETTE), PALETTE[IDS]),
    ):
        image.save(tmp_path / "mask.png")
        assert np.array_equal(read_colour_mask(tmp_path / "mask.png"), expected)
    for image, words in (
        (Image.fromarray(np.dstack([COLOUR, GREY]), "RGBA"), "transparent"),
        (Image.fromarray(GREY), "mode L; expected colours"),
        (Image.fromarray(WIDE), "mode I;16; expected colours"),
    ):
        image.save(tmp_path / "mask.png")
        with pytest.raises(InputError, match=f"mask.png .*{words}"):
            read_colour_mask(tmp_path / "mask.png")
    Image.fromarray(COLOUR).save(tmp_path / "mask.png", "JPEG", quality=100)
    with pytest.raises(InputError, match=r"mask.png is a JPEG file"):
        read_colour_mask(tmp_path / "mask.png")


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def frames(path: Path) -> None:
    Image.fromarray(IDS).save(path, "TIFF", save_all=True, append_images=[Image.fromarray(IDS)])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: Image.fromarray(IDS * 10).save(path, "JPEG"), "is a JPEG file, which may change values"),
        (lambda path: Image.fromarray(IDS * 10).save(path, "WEBP"), "is a WEBP file"),
        (lambda path: Image.fromarray(COLOUR).save(path), "mode RGB; expected one id"),
        (lambda path: Image.fromarray(np.dstack([COLOUR, GREY]), "RGBA").save(path), "mode RGBA; expected one id"),
        (lambda path: Image.fromarray(np.dstack([IDS, GREY]), "LA").save(path), "mode LA; expected one id"),
        (lambda path: Image.fromarray(IDS.astype(np.float32)).save(path, "TIFF"), "mode F; expected one id"),
        (lambda path: Image.fromarray(IDS.astype(np.int32)).save(path, "TIFF"), "mode I; expected one id"),
        (frames, "has 2 frames"),
        (lambda path: Image.fromarray(IDS * 10).save(path, "TIFF", compression="jpeg"), "is a TIFF file with jpeg"),
        # 266 is 10 in 8 bits.
        (lambda path: Image.new("I;16", (64, 48), 266).save(path), r"holds 266 \(3072 pixels\); expected 0 to 11"),
        (lambda path: cut(path, 0.7), "cannot be read as an image"),
        (lambda path: path.write_bytes(b""), "cannot be read as an image"),
        (lambda path: path.write_text("no image"), "cannot be read as an image"),
    ],
)
def test_masks_that_cannot_be_used(root: Path, spoil: Callable[[Path], object], words: str) -> None:
    Image.fromarray(IDS).save(mask_path(root))
    spoil(mask_path(root))
    with pytest.raises(InputError, match=f"train_0.png.* {words}"):
        CamVid(root)


def test_an_image_that_is_spoilt_later_is_found_when_it_is_read(root: Path) -> None:
    dataset = CamVid(root)
    cut(root / "images" / "train" / "train_4.jpg", 0.5)
    dataset[3]
    with pytest.raises(InputError, match=r"train_4.jpg cannot be read"):
        dataset[4]


def test_values_of_masks() -> None:
    values = MaskValues({3: 0, 4: 1, 60000: 2, 9: 700}, ignore_index=700)
    ids = values.to_ids(np.array([[4, 3, 60000, 9]], np.uint16), Path("a.png"))
    assert ids.tolist() == [[1, 0, 2, 700]]
    with pytest.raises(InputError) as caught:
        values.to_ids(np.array([[*range(20), 65535, 65535, 65535]], np.uint16), Path("a.png"))
    assert str(caught.value) == (
        "a.png holds 0 (1 pixels), 1 (1 pixels), 2 (1 pixels), 5 (1 pixels), 6 (1 pixels), 7 (1 pixels), 8 (1 pixels), "
        "10 (1 pixels) and 10 other values; expected 3 to 4, 9, 60000."
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n\r\n"])
def test_lists_of_other_systems(root: Path, encoding: str, end: str) -> None:
    before = CamVid(root).ids
    (root / "train.txt").write_bytes(end.join(before).encode(encoding))
    assert CamVid(root).ids == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train_0\ntrain_1\ntrain_0\n", "train.txt has train_0 more than once"),
        ("train_0\n".encode("utf-16"), "train.txt is no UTF-8 text"),
        (b"\xef\xbb\xbf\r\n", "train.txt is empty"),
    ],
)
def test_lists_that_cannot_be_used(root: Path, content: bytes, words: str) -> None:
    (root / "train.txt").write_bytes(content)
    with pytest.raises(InputError, match=words):
        CamVid(root)

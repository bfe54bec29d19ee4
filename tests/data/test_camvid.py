"""CamVid's reader, on drawn files in its layout and, where they are, on the real ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_camvid import COUNTS, draw_camvid
from softjaccard.data.camvid import CamVid, CamVidData
from softjaccard.errors import InputError

REAL = Path(os.environ.get("SOFTJACCARD_CAMVID", Path(__file__).parents[3] / "shared" / "data" / "camvid"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_camvid(tmp_path / "camvid")


def test_items_are_the_files_pixels(root: Path) -> None:
    for split, count in COUNTS.items():
        dataset = CamVid(root, split)
        assert (len(dataset), len(dataset.classes), len(dataset.colours)) == (count, 11, 11)
        for index, sample in enumerate(dataset):
            name = dataset.ids[index]
            image = np.asarray(Image.open(root / "images" / split / f"{name}.jpg"), dtype=np.float32) / 255
            label = np.asarray(Image.open(root / "annotations" / split / f"{name}.png"))
            assert sample["image"].dtype == torch.float32
            assert sample["label"].dtype == torch.int64
            assert sample["index"] == index
            np.testing.assert_allclose(sample["image"].permute(1, 2, 0).numpy(), image)
            np.testing.assert_array_equal(sample["label"].numpy(), label)
            assert (sample["label"][-4:] == CamVid.ignore_index).all()


def test_half_resolution_averages_the_image_and_picks_labels(root: Path) -> None:
    stripes = np.zeros((48, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(root / "images" / "train" / "train_0.jpg", quality=100, subsampling=0)
    sample, full = CamVid(root, scale=0.5)[0], CamVid(root)[0]
    assert sample["image"].shape == (3, 24, 32)
    torch.testing.assert_close(sample["image"][:, 2:-2, 2:-2], torch.full((3, 20, 28), 100 / 255), atol=0.03, rtol=0)
    assert sample["label"].shape == (24, 32)
    torch.testing.assert_close(sample["label"], full["label"][1::2, 1::2])  # blocks of 16 pixels: any neighbour


def test_cache_reads_each_file_once(root: Path) -> None:
    dataset = CamVid(root, cache=True)
    before = [dataset[index] for index in range(len(dataset))]
    shutil.rmtree(root)
    for index, sample in enumerate(before):
        for name, value in dataset[index].items():
            torch.testing.assert_close(value, sample[name])


def spoil_mode(root: Path) -> None:
    Image.new("RGB", (64, 48)).save(root / "annotations" / "train" / "train_0.png")


def spoil_size(root: Path) -> None:
    Image.new("L", (64, 40)).save(root / "annotations" / "train" / "train_0.png")


def spoil_ids(root: Path) -> None:
    Image.new("L", (64, 48), 12).save(root / "annotations" / "train" / "train_0.png")


def truncate(root: Path) -> None:
    path = root / "images" / "train" / "train_0.jpg"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ["no folder", "camvid"]),
        (lambda root: (root / "train.txt").unlink(), ["train split is missing", "train.txt"]),
        (lambda root: (root / "train.txt").write_text("\n"), ["empty", "train.txt"]),
        (lambda root: (root / "images/train/train_2.jpg").unlink(), ["1 of the 5 image", "train_2.jpg"]),
        (lambda root: shutil.rmtree(root / "annotations"), ["5 of the 5 mask", "train_0.png"]),
        (spoil_mode, ["RGB", "train_0.png"]),
        (spoil_size, ["train_0.jpg", "train_0.png", "(64, 48)", "(64, 40)"]),
        (spoil_ids, ["12", "train_0.png"]),
        (truncate, ["cannot be read", "train_0.jpg"]),
    ],
)
def test_what_is_wrong_is_said_when_the_set_is_opened(
    root: Path, spoil: Callable[[Path], object], words: list[str]
) -> None:
    spoil(root)
    with pytest.raises(InputError) as caught:
        CamVid(root)
    assert all(word in str(caught.value) for word in words), caught.value


def test_scale_must_be_positive(root: Path) -> None:
    with pytest.raises(InputError, match="scale is 0"):
        CamVid(root, scale=0)


def test_batches(root: Path) -> None:
    data = CamVidData(str(root), scale=1.0, crop=(32, 32), batch_size=2, evaluation_batch_size=2, pad_multiple=32)
    data.setup("fit")
    data.setup("test")
    batches = list(data.train_dataloader())
    assert len(batches) == 2  # five images: the incomplete batch is left out
    for batch in batches:
        assert batch["image"].shape == (2, 3, 32, 32)
        assert batch["label"].shape == (2, 32, 32)
        assert set(batch["label"].unique().tolist()) <= {-100, *range(11)}
    for loader in (data.val_dataloader(), data.test_dataloader()):
        (batch,) = list(loader)
        assert batch["image"].shape == (2, 3, 64, 64)  # 48x64, padded to a multiple of 32
        assert batch["label"].shape == (2, 64, 64)
        assert (batch["label"][:, 44:] == -100).all()
        assert (batch["label"][:, :44] != -100).all()
        assert batch["index"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"crop": (0, 8)}, "crop is 0"),
        ({"pad_multiple": 0}, "pad_multiple is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"flip": 1.5}, "flip is 1.5"),
    ],
)
def test_settings_out_of_range(root: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        CamVidData(str(root), **settings)


def test_a_batch_larger_than_the_set(root: Path) -> None:
    data = CamVidData(str(root), batch_size=6)
    data.setup("fit")
    with pytest.raises(InputError, match="5 images for each device, fewer than batch_size 6"):
        data.train_dataloader()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"CamVid is not in {REAL}; set SOFTJACCARD_CAMVID to its folder")
def test_real_files() -> None:
    sets = {split: CamVid(REAL, split, scale=0.5) for split in ("train", "val", "test")}
    assert {split: len(dataset) for split, dataset in sets.items()} == {"train": 367, "val": 101, "test": 233}
    assert sets["train"][0]["image"].shape == (3, 180, 240)
    labels = torch.stack([sets["train"][index]["label"] for index in range(0, 367, 12)])
    share = torch.bincount(labels.flatten(), minlength=12) / labels.numel()
    # The whole split's shares as its README gives them, here of every twelfth image.
    published = torch.tensor([16.9, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.6, 0.3, 4.0]) / 100
    torch.testing.assert_close(share, published, atol=0.02, rtol=0)

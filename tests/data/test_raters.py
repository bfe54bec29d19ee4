"""Images with several annotators, on drawn files in BU-BIL's layout and, where they are, on the real ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_raters import ANNOTATORS, CLASSES, COUNTS, draw_raters
from softjaccard.data.raters import Raters, RatersData
from softjaccard.data.votes import majority_vote
from softjaccard.errors import InputError

REAL = Path(os.environ.get("SOFTJACCARD_BU_BIL", Path(__file__).parents[3] / "shared" / "data" / "bu_bil"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_raters(tmp_path / "cells")


def mask_of(root: Path, annotator: str, name: str) -> Path:
    return root / "masks" / annotator / f"{name}.png"


def save(mask: Any, path: Path, mode: str | None = None) -> None:
    picture = Image.fromarray(np.asarray(mask, dtype=np.uint8))
    (picture.convert(mode) if mode else picture).save(path)


def test_items_are_the_files_pixels(root: Path) -> None:
    for split, count in COUNTS.items():
        dataset = Raters(root, split, classes=CLASSES)
        assert (len(dataset), dataset.num_classes, dataset.annotators) == (count, 3, ANNOTATORS)
        assert dataset.ids == tuple(f"{split} {number}" for number in range(count))
        for index, sample in enumerate(dataset):
            assert sample.keys() == {"image", "votes", "label", "index"}
            name = dataset.ids[index]
            grey = np.asarray(Image.open(root / "images" / f"{name}.png"), dtype=np.float32) / 255
            masks = [np.asarray(Image.open(mask_of(root, annotator, name))) for annotator in ANNOTATORS]
            assert sample["image"].dtype == torch.float32
            assert sample["votes"].dtype == torch.uint8
            assert sample["index"] == index
            np.testing.assert_allclose(sample["image"].numpy(), np.stack([grey] * 3))
            np.testing.assert_array_equal(sample["votes"].numpy(), np.stack(masks))
            assert torch.equal(sample["label"], majority_vote(sample["votes"], 3, 255))
    assert len({tuple(sample["label"].shape) for sample in dataset}) == 3


def test_annotators_are_those_named_in_this_order(root: Path) -> None:
    everybody, some = Raters(root, classes=CLASSES)[2], Raters(root, classes=CLASSES, annotators=["Cy", "Ann"])
    assert some.annotators == ("Cy", "Ann")
    assert torch.equal(some[2]["votes"], everybody["votes"][[2, 0]])


def test_masks_of_one_bit_and_void_pixels(root: Path) -> None:
    for annotator in ANNOTATORS:
        for path in (root / "masks" / annotator).iterdir():
            save(255 * (np.asarray(Image.open(path)) > 0), path, "1")
    before = Raters(root, classes=["ground", "cell"])[0]["votes"]
    assert before.unique().tolist() == [0, 1]
    path = mask_of(root, "Bob", "train 0")
    mask = np.asarray(Image.open(path)).astype(np.uint8)
    mask[:5] = 77
    save(mask, path)
    votes = Raters(root, classes=["ground", "cell"], void=77)[0]["votes"]
    assert (votes[1, :5] == Raters.ignore_index).all()
    assert torch.equal(votes[1, 5:], before[1, 5:])
    assert torch.equal(votes[[0, 2]], before[[0, 2]])


def test_votes_that_are_missing_do_not_count(root: Path) -> None:
    before = Raters(root, classes=CLASSES)[1]
    mask_of(root, "Ann", "train 1").unlink()
    sample = Raters(root, classes=CLASSES, missing="ignore")[1]
    assert (sample["votes"][0] == Raters.ignore_index).all()
    assert torch.equal(sample["votes"][1:], before["votes"][1:])
    assert torch.equal(sample["label"], majority_vote(before["votes"][1:], 3, 255))


def test_half_resolution_averages_the_image_and_picks_votes(root: Path) -> None:
    height, width = 20, 31
    stripes = np.zeros((height, width))
    stripes[::2] = 200
    save(stripes, root / "images" / "train 0.png")
    full, half = (Raters(root, classes=CLASSES, scale=scale)[0] for scale in (1.0, 0.5))
    assert half["image"].shape == (3, 10, 16)
    torch.testing.assert_close(half["image"][:, 2:-2, 2:-2], torch.full((3, 6, 12), 100 / 255), atol=0.03, rtol=0)
    assert (half["votes"].shape, half["label"].shape) == ((3, 10, 16), (10, 16))
    # Along the height, which halves exactly, either of two neighbours.
    rows = [full["votes"][:, start::2] for start in (0, 1)]
    columns = ((torch.arange(16) + 0.5) * width / 16).floor().long()
    assert any(torch.equal(half["votes"], each[..., columns]) for each in rows)


def test_cache_reads_each_file_once(root: Path) -> None:
    dataset = Raters(root, classes=CLASSES, cache=True)
    before = [dataset[index] for index in range(len(dataset))]
    shutil.rmtree(root)
    for index, sample in enumerate(before):
        for name, value in dataset[index].items():
            assert torch.equal(value, sample[name])


def test_a_share_of_the_training_images_validates(root: Path) -> None:
    def ids(split: Any, **options: Any) -> tuple[str, ...]:
        return Raters(root, split, classes=CLASSES, **{"validation_share": 0.3, **options}).ids

    train, val = ids("train"), ids("val")
    assert (len(train), len(val)) == (5, 2)
    assert sorted(train + val) == [f"train {number}" for number in range(7)]
    assert (list(train), list(val)) == (sorted(train), sorted(val))  # as in the file
    assert ids("test") == ("test 0", "test 1", "test 2")
    assert len({ids("val", validation_seed=seed) for seed in range(6)}) > 3
    # The others stay where they are when images are added.
    (root / "train.txt").write_text("\n".join([*train, "test 0", *val]))
    (root / "test.txt").write_text("test 1\ntest 2")
    assert set(val) <= set(ids("val", validation_share=0.4))
    (root / "val.txt").write_text("test 1\n")
    assert ids("val", validation_share=None) == ("test 1",)  # may be in the list of test, too
    assert len(ids("train", validation_share=None)) == 8


def spoil_size(root: Path) -> None:
    save(np.zeros((20, 30)), mask_of(root, "Bob", "train 0"))


def spoil_ids(root: Path) -> None:
    mask = np.zeros((20, 31))
    mask[3, 4:6] = 7, 255
    save(mask, mask_of(root, "Cy", "train 0"))


def remove_all_masks(root: Path) -> None:
    for annotator in ANNOTATORS:
        mask_of(root, annotator, "train 3").unlink()


def remove_two_masks(root: Path) -> None:
    for name in ("train 2", "train 4"):
        mask_of(root, "Bob", name).unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ["no folder", "cells"]),
        (lambda root: (root / "train.txt").unlink(), ["train split is missing", "train.txt"]),
        (lambda root: (root / "train.txt").write_bytes(b"\r\n"), ["empty", "train.txt"]),
        (lambda root: (root / "train.txt").write_bytes(b"\xff\xfe"), ["train.txt", "UTF-8"]),
        (lambda root: (root / "train.txt").write_text("train 1\ntrain 1"), ["train.txt", "train 1 more than once"]),
        (lambda root: (root / "images" / "train 2.png").unlink(), ["1 of the 7 image files", "train 2.png"]),
        (lambda root: shutil.rmtree(root / "images"), ["7 of the 7 image files", "train 0.png"]),
        (lambda root: shutil.rmtree(root / "masks"), ["no masks", "masks/ANNOTATOR"]),
        (remove_two_masks, ["2 masks", "Bob/train 2.png", "data.missing", "(Ann, Cy)"]),
        (remove_all_masks, ["3 masks", "Ann/train 3.png", "none here"]),
        (spoil_size, ["differ in size", "images/train 0.png", "Bob/train 0.png", "(31, 20)", "(30, 20)"]),
        (spoil_ids, ["Cy/train 0.png holds 7 (1 pixels), 255 (1 pixels)", "0 to 2", "data.void"]),
        (lambda root: save(np.zeros((20, 31)), mask_of(root, "Ann", "train 0"), "RGB"), ["Ann/train 0.png", "RGB"]),
        (lambda root: mask_of(root, "Ann", "train 0").write_bytes(b"no image"), ["Ann/train 0.png", "cannot be read"]),
    ],
)
def test_what_is_wrong_is_said_when_the_set_is_opened(
    root: Path, spoil: Callable[[Path], object], words: list[str]
) -> None:
    spoil(root)
    with pytest.raises(InputError) as caught:
        Raters(root, classes=CLASSES)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_image_without_any_votes_is_named(root: Path) -> None:
    remove_all_masks(root)
    with pytest.raises(InputError, match=r"1 images of the train split have no mask from any.*train 3.png"):
        Raters(root, classes=CLASSES, missing="ignore")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": ["cell"]}, "classes: expected the names of 2 to 255 classes"),
        ({"annotators": ["Ann", "Dan"]}, r"annotators: there is no folder .*Dan; there are Ann, Bob, Cy"),
        ({"annotators": []}, "annotators: expected at least one of Ann, Bob, Cy"),
        ({"annotators": ["Ann", "Ann"]}, "annotators: Ann is named more than once"),
        ({"missing": "skip"}, "missing is skip, but must be error or ignore"),
        ({"void": 2}, "void is 2, but must be no class and at most 255: 3 to 255"),
        ({"void": 256}, "void is 256"),
        ({"validation_share": 1.0}, "validation_share is 1.0, but must be between 0 and 1"),
        ({"validation_share": 0.01}, "validation_share 0.01 of 7 images leaves a split without images"),
        ({"scale": 0}, "scale is 0"),
    ],
)
def test_settings_out_of_range(root: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RatersData(str(root), **{"classes": CLASSES, **settings}).dataset("train")


def test_without_a_list_the_share_is_named(root: Path) -> None:
    data = RatersData(str(root), CLASSES)
    with pytest.raises(InputError, match=r"val.txt was looked for; set data.validation_share"):
        data.setup("fit")


def test_no_image_is_trained_on_and_tested(root: Path) -> None:
    (root / "val.txt").write_text("train 3\ntest 1\n")
    Raters(root, classes=CLASSES, validation_share=0.3)  # which does not read that list
    for split in ("train", "val"):
        with pytest.raises(InputError, match=rf"{split}.txt and .*/(train|val).txt both have train 3 \(1 in all\)"):
            Raters(root, split, classes=CLASSES)
    (root / "test.txt").write_text("test 0\ntrain 4\ntrain 2")
    for split in ("train", "val", "test"):
        with pytest.raises(InputError, match=r"both have train 2 \(2 in all\)"):
            Raters(root, split, classes=CLASSES, validation_share=0.3)


def test_evaluation_batches(root: Path) -> None:
    data = RatersData(str(root), CLASSES, validation_share=0.3, evaluation_batch_size=3, pad_multiple=16)
    data.setup("fit")
    data.setup("test")
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 5, "val": 2, "test": 3}
    (batch,) = data.test_dataloader()
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["votes"].shape == (3, 3, 32, 32)
    for index, sample in enumerate(data.datasets["test"]):
        height, width = sample["label"].shape
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[:height, :width] = True
        for name in ("votes", "label"):
            assert torch.equal(batch[name][index][..., :height, :width].long(), sample[name].long())
            assert (batch[name][index][..., ~inside] == -100).all()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"BU-BIL is not in {REAL}; set SOFTJACCARD_BU_BIL to its folder")
def test_real_files() -> None:
    names = ["background", "cell"]
    with pytest.raises(InputError, match=r"96 masks of the train split.*Person4_Amira/2B_"):
        Raters(REAL, classes=names)
    dataset = Raters(REAL, "test", classes=names, missing="ignore")
    assert (len(dataset), len(dataset.annotators)) == (46, 10)
    index = {line.split(",")[0]: line.split(",") for line in (REAL / "index.csv").read_text().splitlines()}
    for number in (0, 15, 30, 45):
        votes = dataset[number]["votes"].numpy()
        counted = (votes != 255).all((1, 2))
        _, width, height, annotators, _, disputed, _ = index[dataset.ids[number]]
        assert votes.shape == (10, int(height), int(width))
        assert counted.sum() == int(annotators)
        mean = votes[counted].mean(0)
        assert ((mean > 0) & (mean < 1)).mean() == pytest.approx(float(disputed), abs=1e-4)

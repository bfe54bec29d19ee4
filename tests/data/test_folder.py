"""A folder of images and masks of the user's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_data import draw, save, write_list
from softjaccard.data.folder import ImageFolder, ImageFolderData
from softjaccard.errors import InputError

INDEX = """
classes:
  - background
  - {name: cell, id: 255, colour: [1, 2, 3]}
  - {name: border, id: 7}
ignored: [128]
"""
COLOUR = """
masks: colour
classes:
  - {name: water, colour: [0, 0, 255]}
  - {name: land, colour: [0, 128, 0]}
ignored:
  - [0, 0, 0]
"""
NAMES = ("a", "b", "deep/a", "deep/c d", "e.1")
SHARES = (0.2, 0.4)


def draw_folder(root: Path, names: tuple[str, ...] = NAMES, classes: str = INDEX) -> dict[str, np.ndarray]:
    """Write a folder and return its labels, with -100 where nothing counts."""
    rng = np.random.default_rng(0)
    truth = {}
    values = np.array([[0, 0, 255], [0, 128, 0], [0, 0, 0]] if classes == COLOUR else [0, 255, 7, 128], np.uint8)
    for name, ending in zip(names, [".png", ".JPG", ".jpeg", ".bmp", ".tif", ".png", ".png"], strict=False):
        image = draw(root / "images" / f"{name}{ending}", rng)
        which = rng.integers(0, len(values), image.shape[:2])
        save(values[which], root / "masks" / f"{name}.png")
        truth[name] = np.where(which == len(values) - 1, -100, which)
    (root / "classes.yaml").write_text(classes)
    return truth


def assert_labels(dataset: ImageFolder, truth: dict[str, np.ndarray]) -> None:
    assert dataset.ids
    for name, sample in zip(dataset.ids, dataset, strict=True):
        label = sample["label"]
        assert np.array_equal(torch.where(label == dataset.ignore_index, -100, label).numpy(), truth[name]), name


@pytest.mark.parametrize("classes", [INDEX, COLOUR])
def test_lists(tmp_path: Path, classes: str) -> None:
    truth = draw_folder(tmp_path, classes=classes)
    (tmp_path / "train.txt").write_bytes("\ufeffb.JPG\r\ne.1\r\ndeep\\c d.bmp\r\n".encode())
    write_list(tmp_path / "val.txt", ["a", "deep/a"])
    train, val = ImageFolder(tmp_path), ImageFolder(tmp_path, "val")
    assert (train.ids, val.ids) == (("b", "e.1", "deep/c d"), ("a", "deep/a"))
    assert_labels(train, truth)
    assert_labels(val, truth)
    with pytest.raises(InputError, match=r"missing: .*test.txt"):
        ImageFolder(tmp_path, "test")
    write_list(tmp_path / "val.txt", ["a", "x"])
    with pytest.raises(InputError, match=r"1 of the 2 image files .* missing; the first is .*images/x\.\*"):
        ImageFolder(tmp_path, "val")


@pytest.mark.parametrize("names", [["b", "b.JPG"], ["deep/a", "deep\\a"]])
def test_a_name_that_is_twice_in_a_list(tmp_path: Path, names: list[str]) -> None:
    draw_folder(tmp_path)
    write_list(tmp_path / "train.txt", ["a", *names])
    with pytest.raises(InputError, match=f"train.txt has {names[0]} more than once"):
        ImageFolder(tmp_path)


def test_no_image_is_trained_on_and_tested(tmp_path: Path) -> None:
    draw_folder(tmp_path)
    for split, names in {"train": ["a", "b"], "val": ["deep/a"], "test": ["deep/a", "b.JPG"]}.items():
        write_list(tmp_path / f"{split}.txt", names)
    for split, other in (("train", "test"), ("test", "train")):
        with pytest.raises(InputError, match=rf"{split}.txt and .*{other}.txt both have b \(1 in all\)"):
            ImageFolder(tmp_path, split)  # type: ignore[arg-type]
    assert ImageFolder(tmp_path, "val").ids == ("deep/a",)


def test_classes(tmp_path: Path) -> None:
    draw_folder(tmp_path)
    dataset = ImageFolder(tmp_path, shares=SHARES)
    assert (dataset.classes, dataset.num_classes) == (("background", "cell", "border"), 3)
    assert dataset.colours == ((227, 227, 227), (1, 2, 3), (0, 158, 115))
    draw_folder(tmp_path, classes=COLOUR)
    assert ImageFolder(tmp_path, shares=SHARES).colours == ((0, 0, 255), (0, 128, 0))
    (tmp_path / "classes.yaml").rename(tmp_path / "names.yaml")
    assert ImageFolder(tmp_path, shares=SHARES, classes=tmp_path / "names.yaml").classes == ("water", "land")
    with pytest.raises(InputError, match=r"missing: .*classes.yaml"):
        ImageFolder(tmp_path, shares=SHARES)


def test_sub_folders(tmp_path: Path) -> None:
    truth = draw_folder(tmp_path, ("train/a", "train/x/b", "val/a"))
    assert ImageFolder(tmp_path).ids == ("train/a", "train/x/b")
    assert_labels(ImageFolder(tmp_path), truth)
    assert_labels(ImageFolder(tmp_path, "val"), truth)
    with pytest.raises(InputError, match=r"test split of .* is empty"):
        ImageFolder(tmp_path, "test")
    assert ImageFolderData(str(tmp_path)).splits() == ("train", "val")
    shutil.copytree(tmp_path / "images" / "val", tmp_path / "images" / "test")
    with pytest.raises(InputError, match=r"1 of the 1 mask files .*masks/test/a\.\*"):
        ImageFolder(tmp_path, "test")
    assert ImageFolderData(str(tmp_path)).splits() == ("train", "val", "test")


def test_shares(tmp_path: Path) -> None:
    truth = draw_folder(tmp_path)

    def ids(split: str, seed: int) -> tuple[str, ...]:
        dataset = ImageFolder(tmp_path, split, shares=SHARES, shares_seed=seed)  # type: ignore[arg-type]
        assert_labels(dataset, truth)
        return dataset.ids

    splits = [[ids(split, seed) for split in ("train", "val", "test")] for seed in range(6)]
    for parts in splits:
        assert [len(part) for part in parts] == [2, 1, 2]
        assert sorted(sum(parts, ())) == sorted(NAMES)
    assert len({tuple(parts) for parts in splits}) > 2
    assert [ids(split, 0) for split in ("train", "val", "test")] == splits[0]
    data = ImageFolderData(str(tmp_path), shares=(0.2, 0.0), batch_size=2, crop=(8, 8))
    assert data.splits() == ("train", "val")
    data.setup("fit")
    assert len(data.datasets["train"]) == 4
    with pytest.raises(InputError, match=r"test split of .* is empty"):
        data.setup("test")


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.0, 0.0), (-0.1, 0.5)])
def test_shares_out_of_range(tmp_path: Path, shares: tuple[float, float]) -> None:
    draw_folder(tmp_path)
    with pytest.raises(InputError, match="shares are"):
        ImageFolder(tmp_path, shares=shares)
    with pytest.raises(InputError, match="shares_seed is -1"):
        ImageFolder(tmp_path, shares=SHARES, shares_seed=-1)


def test_many_classes_in_masks_of_16_bits(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "train" / "a.png", np.random.default_rng(0), (20, 20))
    ids = np.arange(400, dtype=np.uint16).reshape(20, 20)
    save(ids, tmp_path / "masks" / "train" / "a.png")
    names = "".join(f"- class {number}\n" for number in range(399))
    (tmp_path / "classes.yaml").write_text(f"ignored: [399]\nclasses:\n{names}")
    dataset = ImageFolder(tmp_path)
    label = dataset[0]["label"]
    assert label.flatten().tolist() == [*range(399), dataset.ignore_index]
    assert dataset.ignore_index > 399
    half = ImageFolder(tmp_path, scale=0.5)[0]["label"]
    assert torch.equal(half, label[1::2, 1::2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: None, r"splits of .* are not known: neither .*train.txt nor .*images/train"),
        (lambda root: shutil.rmtree(root / "masks"), r"no folder .*masks\. There is images"),
        (lambda root: (root / "masks").rename(root / "mask"), r"no folder .*masks\. Did you mean mask\?"),
        (
            lambda root: shutil.copy(root / "images/a.png", root / "images/a.bmp"),
            "a.bmp and .*a.png have the same name",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    draw_folder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=words):
        ImageFolder(tmp_path)


def test_missing_partners(tmp_path: Path) -> None:
    draw_folder(tmp_path)
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "images" / "deep" / "a.jpeg").unlink()
    shares = (0.0, 0.0001)  # all are train
    with pytest.raises(InputError, match=r"1 of the 5 image files .*images/deep/a\.\*"):
        ImageFolder(tmp_path, shares=shares)
    draw(tmp_path / "images" / "deep" / "a.png", np.random.default_rng(0))
    with pytest.raises(InputError, match=r"1 of the 5 mask files .*masks/b\.\*"):
        ImageFolder(tmp_path, shares=shares)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "expected a list called classes"),
        ("- a\n- b\n", "expected a list called classes"),
        ("classes: []", "expected a list called classes"),
        ("classes: [a", r"line 1 is no YAML: expected ',' or '\]'"),
        ("classes: [a, 3]", "class 1 is 3; expected a name"),
        ("classes: [a, {id: 3}]", "class 1 is .*expected a name"),
        ("classes: [a, {name: b, ids: 3}]", r"ids is unknown\. Did you mean id\?"),
        ("classes: [a]\nignore: [3]", r"ignore is unknown\. Did you mean ignored\?"),
        ("classes: [a]\nignored: 3", "ignored must be a list"),
        ("classes: [a, a]", "same name is there twice"),
        ("classes: [a, {name: b, id: 0}]", "same id is there twice"),
        ("classes: [a, b]\nignored: [1]", "same id is there twice"),
        ("classes: [{name: a, id: 70000}]", "an id is 70000; expected an integer from 0 to 65535"),
        ("classes: [{name: a, id: true}]", "an id is True"),
        ("classes: [{name: a, colour: red}]", "a colour is red; expected"),
        ("classes: [{name: a, colour: [0, 0, 256]}]", "expected 0 to 255"),
        ("masks: rgb\nclasses: [a]", "masks is 'rgb'; expected index or colour"),
        ("masks: colour\nclasses: [a]", "every class must have a colour"),
        ("masks: colour\nclasses: [{name: a, colour: [1, 2, 3]}]\nignored: [[1, 2, 3]]", "same colour is there twice"),
    ],
)
def test_class_files_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    draw_folder(tmp_path, classes=content)
    with pytest.raises(InputError, match=f"classes.yaml.* {words}"):
        ImageFolder(tmp_path, shares=SHARES)


def test_values_that_the_class_file_does_not_know(tmp_path: Path) -> None:
    draw_folder(tmp_path)
    (tmp_path / "classes.yaml").write_text("classes: [{name: a, id: 0}, {name: b, id: 255}]")
    with pytest.raises(InputError, match=r"holds 7 \(\d+ pixels\), 128 \(\d+ pixels\); expected 0, 255"):
        ImageFolder(tmp_path, shares=SHARES)
    draw_folder(tmp_path, classes=COLOUR)
    name = ImageFolder(tmp_path, shares=SHARES).ids[0]
    image = Image.open(tmp_path / "masks" / f"{name}.png")
    image.putpixel((3, 4), (0, 129, 0))
    image.save(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(InputError, match=r"png holds #008100 \(1 pixels\); expected #000000, #0000ff, #008000"):
        ImageFolder(tmp_path, shares=SHARES)

"""The known data sets, on files drawn in their official layouts and, where they are, on real ones."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_data import CITYSCAPES_LABELS, draw_ade20k, draw_cityscapes, draw_deepglobe, draw_voc, save, write_list
from softjaccard.data.ade20k import ADE20K, ADE20KData
from softjaccard.data.camvid import CamVid
from softjaccard.data.cityscapes import Cityscapes, CityscapesData
from softjaccard.data.deepglobe import DeepGlobeLand, DeepGlobeLandData
from softjaccard.data.pairs import PairedImages
from softjaccard.data.voc import VOC, VOCData
from softjaccard.errors import InputError

FIXTURES = Path(os.environ.get("SOFTJACCARD_FIXTURES", Path(__file__).parents[3] / "shared" / "data" / "fixtures"))


def assert_same(dataset: PairedImages, truth: dict[str, tuple[np.ndarray, np.ndarray]], ending: str = "") -> None:
    assert dataset.ids == tuple(sorted(truth, key=lambda name: name + ending))
    for name, sample in zip(dataset.ids, dataset, strict=True):
        image, label = truth[name]
        assert np.array_equal(sample["image"].numpy(), image.transpose(2, 0, 1).astype(np.float32) / 255), name
        found = sample["label"]
        assert found.dtype == torch.int64
        assert np.array_equal(torch.where(found == dataset.ignore_index, -100, found).numpy(), label), name


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "both"])
def test_cityscapes(tmp_path: Path, kind: str) -> None:
    truth = draw_cityscapes(tmp_path, kind=kind)
    for split in ("train", "val"):
        assert_same(Cityscapes(tmp_path, split), truth[split])
    assert_same(Cityscapes(tmp_path, "test"), truth["val"])
    names = [name for name, _, train in CITYSCAPES_LABELS if train != 255]
    assert list(Cityscapes.classes) == names


def test_cityscapes_knows_each_kind_of_mask_by_its_own_values(tmp_path: Path) -> None:
    draw_cityscapes(tmp_path, kind="both")
    city = tmp_path / "gtFine" / "train" / "aachen"
    save(np.full((12, 17), 34, np.uint8), city / "aachen_000000_000019_gtFine_labelIds.png")
    with pytest.raises(InputError, match=r"labelIds.png holds 34 \(204 pixels\); expected 0 to 33"):
        Cityscapes(tmp_path)
    (city / "aachen_000000_000019_gtFine_labelIds.png").unlink()
    save(np.full((12, 17), 19, np.uint8), city / "aachen_000000_000019_gtFine_labelTrainIds.png")
    with pytest.raises(InputError, match=r"labelTrainIds.png holds 19 \(204 pixels\); expected 0 to 18, 255"):
        Cityscapes(tmp_path)


@pytest.mark.parametrize("place", [".", "ADEChallengeData2016"])
def test_ade20k(tmp_path: Path, place: str) -> None:
    truth = draw_ade20k(tmp_path / place)
    for split in ("train", "val"):
        assert_same(ADE20K(tmp_path, split), truth[split])
    assert_same(ADE20K(tmp_path, "test"), truth["val"])
    assert (len(set(ADE20K.classes)), len(ADE20K.colours)) == (150, 150)


@pytest.mark.parametrize("place", [".", "train", "land-train"])
def test_deepglobe_land(tmp_path: Path, place: str) -> None:
    truth = draw_deepglobe(tmp_path / place)
    names = sorted(truth, key=lambda name: f"{name}_sat.jpg")
    assert names[:3] == ["10", "119", "11"]
    for fold in range(5):
        val = set(names[2 * fold : 2 * fold + 2])
        for split, expected in (("val", val), ("train", {*names} - val)):
            dataset = DeepGlobeLand(tmp_path, split, fold=fold)
            assert_same(dataset, {name: truth[name] for name in expected}, "_sat.jpg")
        assert DeepGlobeLand(tmp_path, "test", fold=fold).ids == DeepGlobeLand(tmp_path, "val", fold=fold).ids


def test_deepglobe_lands_folds_have_the_official_numbers(tmp_path: Path) -> None:
    for number in range(803):
        for ending in ("sat.jpg", "mask.png"):
            (tmp_path / f"{number}_{ending}").touch()
    sets = {split: DeepGlobeLand(tmp_path, split, fold=3, check=False) for split in ("train", "val")}
    assert {split: len(dataset) for split, dataset in sets.items()} == {"train": 643, "val": 160}
    assert all(dataset.count_warning() is None for dataset in sets.values())
    for fold in (-1, 5):
        with pytest.raises(InputError, match=f"fold is {fold}"):
            DeepGlobeLand(tmp_path, fold=fold)


def test_deepglobe_land_has_no_red(tmp_path: Path) -> None:
    name = min(draw_deepglobe(tmp_path))
    save(np.array([[[200, 3, 127]] * 17] * 12, np.uint8), tmp_path / f"{name}_mask.png")
    with pytest.raises(InputError, match=rf"{name}_mask.png holds #ff0000 \(204 pixels\); expected #000000, #0000ff, "):
        DeepGlobeLand(tmp_path, "val")


@pytest.mark.parametrize("place", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_with_the_png_release(tmp_path: Path, place: str) -> None:
    truth = draw_voc(tmp_path / place)
    (tmp_path / place / "SegmentationClassAug" / "._2010_07.png").touch()  # as macOS leaves on other disks
    for split in ("train", "val"):
        assert_same(VOC(tmp_path, split), truth[split])
    assert_same(VOC(tmp_path, "test"), truth["val"])


@pytest.mark.parametrize("given", [None, ".", "dataset", "benchmark_RELEASE/dataset"])
def test_voc_with_sbd_as_downloaded(tmp_path: Path, given: str | None) -> None:
    sbd = tmp_path / "elsewhere" if given else tmp_path
    truth = draw_voc(tmp_path / "VOCdevkit" / "VOC2012", sbd=sbd / (given or "benchmark_RELEASE/dataset"))
    for split in ("train", "val"):
        assert_same(VOC(tmp_path, split, sbd=sbd if given else None), truth[split])


def test_voc_val_needs_no_sbd(tmp_path: Path) -> None:
    truth = draw_voc(tmp_path)
    shutil.rmtree(tmp_path / "SegmentationClassAug")
    assert_same(VOC(tmp_path, "val"), truth["val"])
    with pytest.raises(InputError) as caught:
        VOC(tmp_path)
    assert all(word in str(caught.value) for word in ("benchmark_RELEASE", "SegmentationClassAug", "sbd"))


def spoil_mat(root: Path, content: bytes | dict[str, Any]) -> None:
    from scipy.io import savemat

    path = root / "dataset" / "cls" / "2007_01.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as a mask of SBD"),
        (b"MATLAB 5.0" + bytes(300), "cannot be read as a mask of SBD"),
        ({"GTinst": {"Segmentation": np.zeros((12, 17), np.uint8)}}, "cannot be read as a mask of SBD"),
        ({"GTcls": {"Segmentation": np.zeros((12, 17, 2), np.uint8)}}, r"shape \(12, 17, 2\)"),
        ({"GTcls": {"Segmentation": np.full((12, 17), 0.5)}}, "type float64"),
        (
            {"GTcls": {"Segmentation": np.full((12, 17), 21, np.uint8)}},
            r"holds 21 \(204 pixels\); expected 0 to 20, 255",
        ),
        ({"GTcls": {"Segmentation": np.zeros((17, 12), np.uint8)}}, r"has \(12, 17\)"),
    ],
)
def test_voc_mat_files_that_cannot_be_used(tmp_path: Path, content: bytes | dict[str, Any], words: str) -> None:
    draw_voc(tmp_path, sbd=tmp_path / "dataset")
    spoil_mat(tmp_path, content)
    with pytest.raises(InputError, match=f"2007_01.mat.*{words}"):
        VOC(tmp_path, sbd=tmp_path)


DRAWN: dict[str, tuple[type[PairedImages], Callable[[Path], Any], str, str]] = {
    "cityscapes": (
        Cityscapes, draw_cityscapes, "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png",
    ),
    "ade20k": (
        ADE20K, draw_ade20k, "images/training/ADE_train_00000002.jpg", "annotations/training/ADE_train_00000002.png",
    ),
    "deepglobe": (DeepGlobeLand, draw_deepglobe, "FIRST_sat.jpg", "FIRST_mask.png"),
    "voc": (VOC, draw_voc, "JPEGImages/2007_03.jpg", "SegmentationClass/2007_03.png"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("what", ["image", "mask"])
def test_missing_partners_are_named(tmp_path: Path, name: str, what: str) -> None:
    kind, draw, image, mask = DRAWN[name]
    draw(tmp_path)
    last = sorted(path.name for path in tmp_path.glob("*_sat.jpg"))[-1:] or [""]
    missing = tmp_path / (image if what == "image" else mask).replace("FIRST", last[0].removesuffix("_sat.jpg"))
    assert missing.is_file()
    missing.unlink()
    total = len(kind(tmp_path, check=False))
    with pytest.raises(InputError) as caught:
        kind(tmp_path)
    assert f"1 of the {total} {what} files of the train split of {kind.title} are missing" in str(caught.value)
    assert str(missing) in str(caught.value)


@pytest.mark.parametrize("name", DRAWN)
def test_a_root_of_something_else(tmp_path: Path, name: str) -> None:
    kind = DRAWN[name][0]
    (tmp_path / "something").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}.*"):
        kind(tmp_path)
    with pytest.raises(InputError, match=r"There is no folder .*somethin\. Did you mean something\?"):
        kind(tmp_path / "somethin")
    with pytest.raises(InputError, match=r"no folder .*somethin/x, because .*somethin is missing\. Did you mean some"):
        kind(tmp_path / "somethin" / "x")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no folder"):
        kind(tmp_path / "file")


def test_an_empty_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for folder in ("leftImg8bit", "gtFine"):
            (tmp_path / folder / split / "ulm").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no images: .*leftImg8bit/train/\*/\*_leftImg8bit.png was looked for"):
        Cityscapes(tmp_path)
    draw_voc(tmp_path / "VOC2012")
    write_list(tmp_path / "VOC2012/ImageSets/Segmentation/val.txt", [" ", ""])
    with pytest.raises(InputError, match=r"val\.txt is empty"):
        VOC(tmp_path)
    draw_deepglobe(tmp_path / "land", 4)
    with pytest.raises(InputError, match="4 images, too few for 5 folds"):
        DeepGlobeLand(tmp_path / "land")


def test_a_part_of_a_data_set_can_be_used_with_a_warning(tmp_path: Path) -> None:
    draw_ade20k(tmp_path)
    with pytest.warns(UserWarning, match="train split of ADE20K in .* has 4 images, officially 20210"):
        ADE20K(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ADE20K(tmp_path, check=False)
    assert not caught


def test_files_of_other_systems_do_not_count(tmp_path: Path) -> None:
    truth = draw_ade20k(tmp_path)
    for folder in ("images", "annotations"):
        for name in ("._ADE_train_00000001.jpg", "._ADE_train_00000001.png", "Thumbs.db"):
            (tmp_path / folder / "training" / name).write_bytes(b"x")
    assert_same(ADE20K(tmp_path), truth["train"])


def test_batches(tmp_path: Path) -> None:
    draw_cityscapes(tmp_path / "cityscapes")
    draw_ade20k(tmp_path / "ade20k")
    draw_deepglobe(tmp_path / "deepglobe")
    draw_voc(tmp_path / "voc", sbd=tmp_path / "sbd")
    common = {"crop": (8, 8), "batch_size": 2, "evaluation_batch_size": 2, "pad_multiple": 4}
    for data, validation in (
        (CityscapesData(str(tmp_path / "cityscapes"), **common), 4),
        (ADE20KData(str(tmp_path / "ade20k"), **common), 3),
        (DeepGlobeLandData(str(tmp_path / "deepglobe"), fold=1, scale=0.5, **common), 2),
        (VOCData(str(tmp_path / "voc"), sbd=str(tmp_path / "sbd"), cache=True, **common), 2),
    ):
        data.setup("fit")
        data.setup("test")
        classes = data.datasets["train"].num_classes
        for batch in data.train_dataloader():
            assert batch["image"].shape == (2, 3, 8, 8)
            assert {*batch["label"].unique().tolist()} <= {-100, *range(classes)}
        for loader in (data.val_dataloader(), data.test_dataloader()):
            assert sum(len(batch["label"]) for batch in loader) == validation
            assert all((batch["label"] == -100).any() for batch in loader)
        assert data.splits() == ("train", "val")


@pytest.mark.parametrize("kind", [CamVid, Cityscapes, ADE20K, DeepGlobeLand, VOC])
def test_class_tables_are_complete(kind: type[PairedImages]) -> None:
    assert kind.num_classes == len(kind.classes) == len(set(kind.classes)) == len(kind.colours)
    assert {*kind.values.classes.values()} == {*range(kind.num_classes), kind.ignore_index}


@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"There are no real files in {FIXTURES}; set SOFTJACCARD_FIXTURES")
def test_real_files() -> None:
    dataset = Cityscapes(FIXTURES / "cityscapes", "val")
    mask = str(dataset.pairs[0].mask).replace("labelIds", "labelTrainIds")
    # Not all: the two masks were made smaller one by one.
    assert (dataset[0]["label"].numpy() == np.asarray(Image.open(mask))).mean() > 0.995
    dataset = ADE20K(FIXTURES / "ade20k", "val")
    assert len(dataset) == 3
    # What objectInfo150.txt calls what is in the first image: a street with buildings under the sky.
    share = torch.bincount(dataset[0]["label"].flatten(), minlength=256) / dataset[0]["label"].numel()
    assert {dataset.classes[index] for index in share[:150].topk(2).indices} == {"building", "sky"}

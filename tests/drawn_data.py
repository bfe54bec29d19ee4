"""A few small images in the layouts of the data sets as they are downloaded, drawn for the tests.

Each function writes files and returns what a reader has to find: for each split and id the image's pixels, uint8
(H, W, 3), and the class ids, int64 (H, W), with -100 where nothing counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Truth = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]

# The 34 labels of Cityscapes' own table (name, id, id for training), ids for training of 255 being void.
CITYSCAPES_LABELS = (
    ("unlabeled", 0, 255), ("ego vehicle", 1, 255), ("rectification border", 2, 255), ("out of roi", 3, 255),
    ("static", 4, 255), ("dynamic", 5, 255), ("ground", 6, 255), ("road", 7, 0), ("sidewalk", 8, 1),
    ("parking", 9, 255), ("rail track", 10, 255), ("building", 11, 2), ("wall", 12, 3), ("fence", 13, 4),
    ("guard rail", 14, 255), ("bridge", 15, 255), ("tunnel", 16, 255), ("pole", 17, 5), ("polegroup", 18, 255),
    ("traffic light", 19, 6), ("traffic sign", 20, 7), ("vegetation", 21, 8), ("terrain", 22, 9), ("sky", 23, 10),
    ("person", 24, 11), ("rider", 25, 12), ("car", 26, 13), ("truck", 27, 14), ("bus", 28, 15), ("caravan", 29, 255),
    ("trailer", 30, 255), ("train", 31, 16), ("motorcycle", 32, 17), ("bicycle", 33, 18),
)  # fmt: skip

DEEPGLOBE_COLOURS = {
    (0, 255, 255): 0, (255, 255, 0): 1, (255, 0, 255): 2, (0, 255, 0): 3, (0, 0, 255): 4, (255, 255, 255): 5,
    (0, 0, 0): -100,
}  # fmt: skip


def draw(path: Path, rng: np.random.Generator, size: tuple[int, int] = (12, 17)) -> np.ndarray:
    """Write a picture and return its pixels as decoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return np.asarray(Image.open(path).convert("RGB"))


def save(mask: np.ndarray, path: Path) -> None:
    """Write a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def draw_cityscapes(root: Path, *, kind: str = "labelIds") -> Truth:
    """Write two cities of each split; kind is which masks there are: labelIds, labelTrainIds or both."""
    rng = np.random.default_rng(1)
    truth: Truth = {}
    to_train = np.array([train for _, _, train in CITYSCAPES_LABELS], np.uint8)
    for split, cities in {"train": ("aachen", "ulm"), "val": ("lindau", "munster")}.items():
        truth[split] = {}
        for city in cities:
            for number in range(2):
                name = f"{city}_{number:06}_000019"
                image = draw(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", rng)
                ids = rng.integers(0, 34, image.shape[:2], np.uint8)
                folder = root / "gtFine" / split / city
                for each, mask in (("labelIds", ids), ("labelTrainIds", to_train[ids])):
                    if kind in (each, "both"):
                        save(mask, folder / f"{name}_gtFine_{each}.png")
                # What else the download has.
                save(mask, folder / f"{name}_gtFine_color.png")
                label = to_train[ids].astype(np.int64)
                truth[split][f"{city}/{name}"] = image, np.where(label == 255, -100, label)
    return truth


def draw_ade20k(root: Path) -> Truth:
    """Write images of different sizes."""
    rng = np.random.default_rng(2)
    truth: Truth = {}
    for split, folder, stem, count in (("train", "training", "ADE_train", 4), ("val", "validation", "ADE_val", 3)):
        truth[split] = {}
        for number in range(1, count + 1):
            name = f"{stem}_{number:08}"
            image = draw(root / "images" / folder / f"{name}.jpg", rng, (10 + number, 15))
            ids = rng.integers(0, 151, image.shape[:2], np.uint8)
            save(ids, root / "annotations" / folder / f"{name}.png")
            truth[split][name] = image, np.where(ids == 0, -100, ids.astype(np.int64) - 1)
    return truth


def draw_deepglobe(root: Path, count: int = 13) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write images and masks whose channels are a little off 0 and 255; not divided into folds."""
    rng = np.random.default_rng(3)
    colours = np.array(list(DEEPGLOBE_COLOURS), np.uint8)
    classes = np.array(list(DEEPGLOBE_COLOURS.values()))
    truth = {}
    # With an underscore behind them, numbers that begin with another come before it.
    for number in (10, 11, 119, *rng.choice(range(20, 100), count - 3, replace=False)):
        image = draw(root / f"{number}_sat.jpg", rng)
        which = rng.integers(0, 7, image.shape[:2])
        off = rng.integers(0, 128, image.shape, np.uint8)
        save(np.where(colours[which] == 255, 255 - off, off).astype(np.uint8), root / f"{number}_mask.png")
        truth[str(number)] = image, classes[which]
    return truth


VOC_TRAIN, VOC_VAL = ("2007_01", "2007_03", "2007_09"), ("2007_02", "2008_05")
SBD_TRAIN, SBD_VAL = ("2007_01", "2008_05", "2010_07"), ("2007_02", "2010_08")
TRAINAUG = ("2007_01", "2007_03", "2007_09", "2010_07", "2010_08")


def draw_voc(voc: Path, *, sbd: Path | None = None) -> Truth:
    """Write VOC 2012 with SBD in its own layout, or without a folder for it, with the PNG release.

    SBD's masks differ from VOC's, so that it can be seen which was read.
    """
    rng = np.random.default_rng(4)
    palette = rng.permutation(768).astype(np.uint8).tobytes()
    pictures, original, augmented = {}, {}, {}
    for name in sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL}):
        pictures[name] = draw(voc / "JPEGImages" / f"{name}.jpg", rng)
        size = pictures[name].shape[:2]
        if name in VOC_TRAIN + VOC_VAL:
            original[name] = rng.choice(np.array([*range(21), 255], np.uint8), size)
            mask = Image.fromarray(original[name], "P")
            mask.putpalette(palette)
            (voc / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(voc / "SegmentationClass" / f"{name}.png")
        if name in SBD_TRAIN + SBD_VAL:
            augmented[name] = rng.integers(0, 21, size, np.uint8)
            if sbd is None:
                save(augmented[name], voc / "SegmentationClassAug" / f"{name}.png")
            else:
                (sbd / "cls").mkdir(parents=True, exist_ok=True)
                classes = {"Segmentation": augmented[name], "Boundaries": np.zeros(3), "CategoriesPresent": [1]}
                savemat(sbd / "cls" / f"{name}.mat", {"GTcls": classes})
    write_list(voc / "ImageSets" / "Segmentation" / "train.txt", VOC_TRAIN)
    write_list(voc / "ImageSets" / "Segmentation" / "val.txt", VOC_VAL)
    if sbd is not None:
        write_list(sbd / "train.txt", SBD_TRAIN)
        write_list(sbd / "val.txt", SBD_VAL)

    def label(name: str, masks: dict[str, np.ndarray]) -> np.ndarray:
        return np.where(masks[name] == 255, -100, masks[name].astype(np.int64))

    return {
        "train": {
            name: (pictures[name], label(name, augmented if name in augmented else original)) for name in TRAINAUG
        },
        "val": {name: (pictures[name], label(name, original)) for name in VOC_VAL},
    }


def write_list(path: Path, names: Sequence[str]) -> None:
    """Write names one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))

"""PASCAL VOC 2012: photographs with 20 kinds of objects, with the masks of SBD for training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from softjaccard.data.lists import read_list
from softjaccard.data.masks import MaskValues, read_index_mask
from softjaccard.data.module import Split
from softjaccard.data.pairs import Counts, Pair, PairedData, PairedImages, existing_folder, first_folder
from softjaccard.errors import InputError, first_line


class VOC(PairedImages):
    """PASCAL VOC 2012's images and masks, trained on with the augmented set ("trainaug").

    Layout: `JPEGImages/ID.jpg`, `SegmentationClass/ID.png` and `ImageSets/Segmentation/{train,val}.txt` in the root or
    in its `VOCdevkit/VOC2012`. The further masks come from either of

    - SBD (Hariharan et al., ICCV 2011) as downloaded: `cls/ID.mat` with `train.txt` and `val.txt` in the folder `sbd`;
    - the PNG release of them: `SegmentationClassAug/ID.png` beside `SegmentationClass`.

    Train has the images of SBD's two lists (or of the PNG release) and of VOC's train without those of VOC's val; SBD's
    mask counts where there is one, VOC's elsewhere. Val has VOC's masks. The test split is val, because the test
    images' labels are not public. Void (255) is ignored.

    Args:
        root: The folder of VOC 2012, of VOCdevkit, or the one above.
        split: Which part.
        sbd: SBD's folder. Without it, the root's `SegmentationClassAug`, or else its `benchmark_RELEASE`, is taken.
        settings: As in :class:`softjaccard.data.pairs.PairedImages`.
    """

    title = "PASCAL VOC 2012"
    official_counts = Counts(train=10582, val=1449)
    classes = (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
    )  # fmt: skip
    colours = (
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
        (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
        (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
    )  # fmt: skip
    num_classes = len(classes)
    values = MaskValues({**{each: each for each in range(21)}, 255: 255}, ignore_index=255)

    def __init__(
        self, root: str | Path, split: Split = "train", *, sbd: str | Path | None = None, **settings: Any
    ) -> None:
        """See the class."""
        self.sbd = sbd
        super().__init__(root, split, **settings)

    def read_label(self, pair: Pair) -> np.ndarray:
        """As in `PairedImages`, from a PNG or from SBD's .mat."""
        read = _read_mat if pair.mask.suffix == ".mat" else read_index_mask
        return self.values.to_ids(read(pair.mask), pair.mask)

    def _find_pairs(self) -> list[Pair]:
        voc = first_folder(self.root, (".", "VOC2012", "VOCdevkit/VOC2012"), "JPEGImages", self.title)
        lists = voc / "ImageSets" / "Segmentation"
        ids: Iterable[str] = read_list(lists / "val.txt")
        augmented: Mapping[str, Path] = {}
        if self.split == "train":
            augmented = self._augmented_masks(voc)
            ids = sorted({*augmented, *read_list(lists / "train.txt")}.difference(ids))
        return [
            Pair(
                each, voc / "JPEGImages" / f"{each}.jpg", augmented.get(each, voc / "SegmentationClass" / f"{each}.png")
            )
            for each in ids
        ]

    def _augmented_masks(self, voc: Path) -> Mapping[str, Path]:
        """Return the mask of each image of SBD."""
        release = voc / "SegmentationClassAug"
        if self.sbd is None and release.is_dir():
            return {path.stem: path for path in release.glob("*.png") if not path.name.startswith(".")}
        try:
            if self.sbd is None:
                sbd = first_folder(self.root, ("benchmark_RELEASE/dataset",), "cls", "SBD")
            else:
                places = (".", "dataset", "benchmark_RELEASE/dataset")
                sbd = first_folder(existing_folder(Path(self.sbd)), places, "cls", "SBD")
        except InputError as error:
            raise InputError(f"{error} (sbd says where SBD is; {release} would do, too.)") from error
        ids = {*read_list(sbd / "train.txt"), *read_list(sbd / "val.txt")}
        return {each: sbd / "cls" / f"{each}.mat" for each in ids}


class VOCData(PairedData):
    """PASCAL VOC 2012's augmented train and its val as loaders; the test images are those of val.

    Args:
        root: The folder of VOC 2012, of VOCdevkit, or the one above.
        sbd: SBD's folder; by default SegmentationClassAug in VOC's folder or benchmark_RELEASE in the root is taken.
        scale: Factor on height and width of images and labels.
        cache: Keep decoded images in memory (9 GB for the whole set at full resolution).
        settings: As in `SegmentationData`.
    """

    images = VOC

    def __init__(
        self, root: str, *, sbd: str | None = None, scale: float = 1.0, cache: bool = False, **settings: Any
    ) -> None:
        """See the class."""
        super().__init__(root, scale=scale, cache=cache, **settings)
        self.sbd = sbd

    def _options(self) -> dict[str, Any]:
        return {"sbd": self.sbd}


def _read_mat(path: Path) -> np.ndarray:
    """Read the class mask of SBD's MATLAB file."""
    from scipy.io import loadmat

    try:
        mask: np.ndarray = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"].item()
    # A damaged file can make the reader stumble over anything.
    except Exception as error:
        raise InputError(f"{path} cannot be read as a mask of SBD: {first_line(error)}") from error
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.unsignedinteger):
        raise InputError(
            f"{path} has GTcls.Segmentation of type {mask.dtype}, shape {mask.shape}; expected ids (H, W)."
        )
    return mask

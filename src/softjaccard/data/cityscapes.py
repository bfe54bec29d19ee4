"""Cityscapes: street scenes of 50 cities with 19 classes, fine annotations."""

from __future__ import annotations

import numpy as np

from softjaccard.data.masks import MaskValues, read_index_mask
from softjaccard.data.pairs import Counts, Pair, PairedData, PairedImages, pairs_in_folders

# Of the 34 labels the classes are evaluated, in this order; the others are void.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_LABELS = 34
_IGNORED = 255

_IMAGE, _LABEL, _TRAIN = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


class Cityscapes(PairedImages):
    """Cityscapes' images and index masks.

    Layout: `leftImg8bit/SPLIT/CITY/ID_leftImg8bit.png` and `gtFine/SPLIT/CITY/ID_gtFine_labelIds.png`, as downloaded;
    for images without the latter, `ID_gtFine_labelTrainIds.png`, which the data set's own scripts write. Both give the
    same labels. The test split is val, because the test images' labels are not public.

    Arguments and items are those of :class:`softjaccard.data.pairs.PairedImages`.
    """

    title = "Cityscapes"
    official_counts = Counts(train=2975, val=500)
    classes = (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )  # fmt: skip
    colours = (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
        (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    )  # fmt: skip
    num_classes = len(classes)
    ignore_index = _IGNORED
    values = MaskValues(
        {**dict.fromkeys(range(_LABELS), _IGNORED), **{label: each for each, label in enumerate(_LABEL_IDS)}}, _IGNORED
    )
    train_values = MaskValues({**{each: each for each in range(19)}, _IGNORED: _IGNORED}, _IGNORED)

    def read_label(self, pair: Pair) -> np.ndarray:
        """As in `PairedImages`, from either kind of mask."""
        values = self.train_values if pair.mask.name.endswith(_TRAIN) else self.values
        return values.to_ids(read_index_mask(pair.mask), pair.mask)

    def _find_pairs(self) -> list[Pair]:
        images, masks = self.root / "leftImg8bit" / self.split, self.root / "gtFine" / self.split
        return [_with_existing_mask(pair) for pair in pairs_in_folders(images, masks, _IMAGE, _LABEL, "*/*")]


def _with_existing_mask(pair: Pair) -> Pair:
    other = pair.mask.with_name(pair.mask.name.replace(_LABEL, _TRAIN))
    return pair._replace(mask=other) if other.is_file() and not pair.mask.is_file() else pair


class CityscapesData(PairedData):
    """Cityscapes' images as loaders; the test images are those of val.

    Args:
        root: The folder with leftImg8bit/ and gtFine/.
        scale: Factor on height and width of images and labels.
        cache: Keep decoded images in memory (29 GB for the whole set at full resolution).
        settings: As in `SegmentationData`.
    """

    images = Cityscapes

"""CamVid: 701 road scenes with 11 classes, in the layout of the SegNet tutorial's split."""

from __future__ import annotations

from typing import Any

from softjaccard.data.lists import read_list
from softjaccard.data.masks import MaskValues
from softjaccard.data.pairs import Counts, Pair, PairedData, PairedImages


class CamVid(PairedImages):
    """CamVid's images and index masks.

    Layout: `images/SPLIT/ID.jpg`, `annotations/SPLIT/ID.png` (ids: 0 to 10 as in `classes`, 11 ignored) and
    `SPLIT.txt` with one ID per line, for the splits train, val and test.

    Arguments and items are those of :class:`softjaccard.data.pairs.PairedImages`.
    """

    title = "CamVid"
    official_counts = Counts(train=367, val=101, test=233)
    classes = (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    colours = (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    )  # fmt: skip
    num_classes = len(classes)
    ignore_index = 11
    values = MaskValues({value: value for value in range(12)}, ignore_index)

    def _find_pairs(self) -> list[Pair]:
        images, masks = self.root / "images" / self.split, self.root / "annotations" / self.split
        return [
            Pair(each, images / f"{each}.jpg", masks / f"{each}.png")
            for each in read_list(self.root / f"{self.split}.txt")
        ]


class CamVidData(PairedData):
    """CamVid's three splits as loaders.

    Args:
        root: CamVid's folder, with images/, annotations/ and train.txt, val.txt, test.txt.
        scale: Factor on height and width of images and labels.
        cache: Keep decoded images in memory (91 MB for the whole set at half resolution).
        settings: As in `SegmentationData`.
    """

    images = CamVid

    def __init__(self, root: str, *, scale: float = 0.5, cache: bool = True, **settings: Any) -> None:
        """See the class."""
        super().__init__(root, scale=scale, cache=cache, **settings)

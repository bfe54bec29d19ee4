"""DeepGlobe Land: satellite images with six kinds of land cover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from softjaccard.data.masks import MaskValues, pack_colours, read_colour_mask, show_packed
from softjaccard.data.module import Split
from softjaccard.data.pairs import Counts, Pair, PairedData, PairedImages, first_folder, pairs_in_folders
from softjaccard.errors import InputError

_FOLDS = 5
_IGNORED = 255
_HALF = 128


class DeepGlobeLand(PairedImages):
    """DeepGlobe Land's images and colour masks (Demir et al., CVPR workshops 2018).

    Layout: `ID_sat.jpg` and `ID_mask.png` in the root, its `train` or its `land-train`. Only these 803 images have
    public labels; they are sorted by the images' file names, in which 119012_sat.jpg comes before 119_sat.jpg, and cut
    into five folds of 160, the last three images always being trained on. Val is the fold of that number, train all
    others, and test is val. As the data set's own description has it, a mask's channels count as 255 from 128 on.
    Unknown (black) is ignored.

    Args:
        root: The folder of the data set.
        split: Which part.
        fold: Which fold is val, 0 to 4.
        settings: As in :class:`softjaccard.data.pairs.PairedImages`.
    """

    title = "DeepGlobe Land"
    official_counts = Counts(train=643, val=160)
    classes = ("urban", "agriculture", "rangeland", "forest", "water", "barren")
    colours = ((0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255))
    num_classes = len(classes)
    ignore_index = _IGNORED
    values = MaskValues(
        {0: _IGNORED, **{int(pack_colours(np.array(each, np.uint8))): index for index, each in enumerate(colours)}},
        _IGNORED,
        show_packed,
    )

    def __init__(self, root: str | Path, split: Split = "train", *, fold: int = 0, **settings: Any) -> None:
        """See the class."""
        if fold not in range(_FOLDS):
            raise InputError(f"fold is {fold}, but must be 0 to {_FOLDS - 1}.")
        self.fold = fold
        super().__init__(root, split, **settings)

    def read_label(self, pair: Pair) -> np.ndarray:
        """As in `PairedImages`, from a colour mask."""
        colours = np.where(read_colour_mask(pair.mask) < _HALF, 0, 255).astype(np.uint8)
        return self.values.to_ids(pack_colours(colours), pair.mask)

    def _find_pairs(self) -> list[Pair]:
        folder = first_folder(self.root, (".", "train", "land-train"), "*_sat.jpg", self.title)
        pairs = pairs_in_folders(folder, folder, "_sat.jpg", "_mask.png")
        pairs.sort(key=lambda pair: pair.image.name)  # not by id, of which one may begin another
        size = len(pairs) // _FOLDS
        if size == 0:
            raise InputError(f"{folder} has {len(pairs)} images, too few for {_FOLDS} folds.")
        val = slice(size * self.fold, size * (self.fold + 1))
        return pairs[val] if self.split == "val" else pairs[: val.start] + pairs[val.stop :]


class DeepGlobeLandData(PairedData):
    """DeepGlobe Land's folds as loaders; the test images are those of val.

    Args:
        root: The folder with ID_sat.jpg and ID_mask.png, or the one above its train/ or land-train/.
        fold: Which of the five folds is val; the others are train.
        scale: Factor on height and width of images and labels.
        cache: Keep decoded images in memory (19 GB for the whole set at full resolution).
        settings: As in `SegmentationData`.
    """

    images = DeepGlobeLand

    def __init__(self, root: str, *, fold: int = 0, scale: float = 1.0, cache: bool = False, **settings: Any) -> None:
        """See the class."""
        super().__init__(root, scale=scale, cache=cache, **settings)
        self.fold = fold

    def _options(self) -> dict[str, Any]:
        return {"fold": self.fold}

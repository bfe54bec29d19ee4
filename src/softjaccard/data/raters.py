"""Images with the masks of several annotators, one folder of masks for each, such as BU-BIL's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from softjaccard.data.images import read_image
from softjaccard.data.lists import draw_order, read_list, repeated
from softjaccard.data.masks import read_index_mask
from softjaccard.data.module import SegmentationData, Split
from softjaccard.data.pairs import Pair, check_sizes, existing_folder
from softjaccard.data.votes import majority_vote
from softjaccard.errors import InputError

Missing = Literal["error", "ignore"]


class Raters(Dataset[dict[str, Tensor]]):
    """Images that several annotators have labelled, read from the folder the user names.

    Layout: `images/ID.png`, `masks/ANNOTATOR/ID.png` (class ids, 1, 8 or 16 bits) and `SPLIT.txt` with one ID per line.

    Each item holds plain tensors:

    - `image`: float32 (3, H, W) in [0, 1]
    - `votes`: uint8 (R, H, W), the annotators' masks in the order of `annotators`, `ignore_index` where one has none
    - `label`: int64 (H, W), the class with most votes (of several the lowest id), `ignore_index` where there are none
    - `index`: int64 (), the position in the split; `ids[index]` is the file's name

    Args:
        root: The folder with `images`, `masks` and the split files.
        split: Which part.
        classes: The names of the classes, in the order of their ids, which begin with 0.
        annotators: The folders in `masks` to use; None for all.
        missing: What happens where an annotator has no mask of an image: "error", or "ignore" for no votes there.
        void: The value of pixels that an annotator left out, if there is one.
        validation_share: With a number, the split val is this share of the images in train.txt, and train is the rest;
            with None there is a file val.txt.
        validation_seed: Which images these are. That depends on their ids and this number alone.
        scale: Factor on height and width (0.5 is half resolution): the image is averaged (bilinear, antialiased), masks
            take the nearest pixel.
        cache: Keep the decoded, scaled images and masks in memory (12 + R bytes a pixel; 151 MB for all of BU-BIL), so
            that later epochs do not decode again.

    Raises:
        InputError: If a folder, split file, image or mask is missing or cannot be used as such, sizes differ, a mask
            has values that are no class, or a setting is out of its range.
    """

    ignore_index = 255

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        *,
        classes: Sequence[str],
        annotators: Sequence[str] | None = None,
        missing: Missing = "error",
        void: int | None = None,
        validation_share: float | None = None,
        validation_seed: int = 0,
        scale: float = 1.0,
        cache: bool = False,
    ) -> None:
        """See the class."""
        self.root, self.split = existing_folder(Path(root)), split
        self.classes, self.num_classes = tuple(classes), len(classes)
        self.missing, self.void, self.scale, self.cache = missing, void, scale, cache
        self._check_settings(validation_share)
        self.ids = self._read_ids(validation_share, validation_seed)
        self.annotators = self._find_annotators(annotators)
        self._check_files()
        self._decoded: dict[int, tuple[Tensor, Tensor]] = {}
        self._read(0)

    def __len__(self) -> int:
        """Return the number of images in the split."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read one image and its masks; indices count as in a list."""
        index = range(len(self.ids))[index]
        image, votes = self._decoded.get(index) or self._read(index)
        if self.cache:
            self._decoded[index] = image, votes
        label = majority_vote(votes, self.num_classes, self.ignore_index)
        return {"image": image, "votes": votes, "label": label, "index": torch.tensor(index)}

    def _check_settings(self, validation_share: float | None) -> None:
        if not 2 <= self.num_classes <= self.ignore_index:
            raise InputError(
                f"classes: expected the names of 2 to {self.ignore_index} classes, the background's among them, got "
                f"{self.num_classes}."
            )
        if self.missing not in ("error", "ignore"):
            raise InputError(f"missing is {self.missing}, but must be error or ignore.")
        if self.void is not None and not self.num_classes <= self.void <= 255:
            raise InputError(f"void is {self.void}, but must be no class and at most 255: {self.num_classes} to 255.")
        if validation_share is not None and not 0 < validation_share < 1:
            raise InputError(f"validation_share is {validation_share}, but must be between 0 and 1.")
        if self.scale <= 0:
            raise InputError(f"scale is {self.scale}, but must be above 0.")

    def _read_ids(self, validation_share: float | None, validation_seed: int) -> tuple[str, ...]:
        if validation_share is None or self.split == "test":
            return self._read_list(self.split)
        ids = self._read_list("train")
        count = round(validation_share * len(ids))
        if not 0 < count < len(ids):
            raise InputError(f"validation_share {validation_share} of {len(ids)} images leaves a split without images.")
        validation = set(draw_order(ids, validation_seed)[:count])
        return tuple(name for name in ids if (name in validation) == (self.split == "val"))

    def _read_list(self, split: Split) -> tuple[str, ...]:
        hint = "; set data.validation_share to validate on a share of train.txt" if split == "val" else ""
        return read_list(self.root / f"{split}.txt", hint)

    def _find_annotators(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        folder = self.root / "masks"
        found = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())
        if not found:
            raise InputError(f"There are no masks: folders {folder}/ANNOTATOR were looked for.")
        if wanted is None:
            return tuple(found)
        if not wanted:
            raise InputError(f"annotators: expected at least one of {', '.join(found)}, or null for all.")
        if unknown := [name for name in wanted if name not in found]:
            raise InputError(f"annotators: there is no folder {folder / unknown[0]}; there are {', '.join(found)}.")
        if twice := repeated(wanted):
            raise InputError(f"annotators: {twice} is named more than once.")
        return tuple(wanted)

    def _image_path(self, name: str) -> Path:
        return self.root / "images" / f"{name}.png"

    def _mask_path(self, annotator: str, name: str) -> Path:
        return self.root / "masks" / annotator / f"{name}.png"

    def _check_files(self) -> None:
        if missing := [path for path in map(self._image_path, self.ids) if not path.is_file()]:
            raise InputError(
                f"{len(missing)} of the {len(self.ids)} images of the {self.split} split are missing; the first is "
                f"{missing[0]}."
            )
        lacking = {
            annotator: [name for name in self.ids if not self._mask_path(annotator, name).is_file()]
            for annotator in self.annotators
        }
        if self.missing == "ignore":
            if unlabelled := set(self.ids).intersection(*lacking.values()):
                raise InputError(
                    f"{len(unlabelled)} images of the {self.split} split have no mask from any annotator; one is "
                    f"{self._image_path(min(unlabelled))}."
                )
        elif some := {annotator: names for annotator, names in lacking.items() if names}:
            annotator, names = next(iter(some.items()))
            complete = [name for name in self.annotators if name not in some]
            raise InputError(
                f"{sum(map(len, some.values()))} masks of the {self.split} split are missing; the first is "
                f"{self._mask_path(annotator, names[0])}. Set data.missing to ignore to do without their votes, or "
                f"data.annotators to those who have masks of all images ({', '.join(complete) or 'none here'})."
            )

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the scaled image, float32 (3, H, W), and votes, uint8 (R, H, W)."""
        name = self.ids[index]
        image = read_image(self._image_path(name))
        height, width = image.shape[-2:]
        size = (max(1, round(height * self.scale)), max(1, round(width * self.scale)))
        votes = [self._read_mask(annotator, name, (width, height), size) for annotator in self.annotators]
        if size != (height, width):
            image = functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
        return image, torch.from_numpy(np.stack(votes))

    def _read_mask(self, annotator: str, name: str, expected: tuple[int, int], size: tuple[int, int]) -> Any:
        """Return a mask's ids, uint8, scaled to `size` (H, W); `expected` is the image's (width, height)."""
        path = self._mask_path(annotator, name)
        if not path.is_file():
            return np.full(size, self.ignore_index, dtype=np.uint8)
        ids = read_index_mask(path)
        check_sizes(Pair(name, self._image_path(name), path), expected, ids)
        strange = [value for value in np.unique(ids).tolist() if value >= self.num_classes and value != self.void]
        if strange:
            raise InputError(
                f"{path} holds {', '.join(map(str, strange[:5]))}; expected the ids of {self.num_classes} classes, 0 "
                f"to {self.num_classes - 1}. If {strange[-1]} marks pixels that the annotator left out, set data.void "
                "to it."
            )
        if self.void is not None:
            ids[ids == self.void] = self.ignore_index
        return np.array(Image.fromarray(ids.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST))


class RatersData(SegmentationData):
    """The splits of images with several annotators as loaders; batches have `votes` beside the majority's `label`.

    Args:
        root: The folder with images/, masks/ANNOTATOR/ and train.txt, test.txt, and val.txt or a `validation_share`.
        classes: The names of the classes, in the order of their ids, which begin with 0.
        annotators: The folders in masks/ to use, such as those who have masks of all images; null for all.
        missing: Where an annotator has no mask of an image: error, or ignore for no votes there.
        void: The value of pixels that an annotator left out; null if there is none.
        validation_share: The share of the images in train.txt to validate on; null if there is a val.txt.
        validation_seed: Which images these are; the run's own seed does not change it.
        scale: Factor on height and width of images and masks.
        cache: Keep decoded images and masks in memory.
        settings: As in `SegmentationData`.
    """

    def __init__(
        self,
        root: str,
        classes: list[str],
        *,
        annotators: list[str] | None = None,
        missing: Missing = "error",
        void: int | None = None,
        validation_share: float | None = None,
        validation_seed: int = 0,
        scale: float = 1.0,
        cache: bool = True,
        **settings: Any,
    ) -> None:
        """See the class."""
        super().__init__(**settings)
        self.root = root
        self._options: dict[str, Any] = {
            "classes": classes,
            "annotators": annotators,
            "missing": missing,
            "void": void,
            "validation_share": validation_share,
            "validation_seed": validation_seed,
            "scale": scale,
            "cache": cache,
        }

    def dataset(self, split: Split) -> Raters:
        """Open one split."""
        return Raters(self.root, split, **self._options)

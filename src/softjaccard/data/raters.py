"""Images with the masks of several annotators, one folder of masks for each, such as BU-BIL's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from softjaccard.data.colours import distinct_colours
from softjaccard.data.images import read_image
from softjaccard.data.lists import draw_order, read_split, repeated
from softjaccard.data.masks import MaskValues
from softjaccard.data.module import Split
from softjaccard.data.pairs import Pair, PairedData, PairedImages
from softjaccard.data.votes import majority_vote
from softjaccard.errors import InputError

Missing = Literal["error", "ignore"]


class Raters(PairedImages):
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
        settings: As in :class:`softjaccard.data.pairs.PairedImages`; the cache takes 12 + R bytes a pixel, 151 MB for
            all of BU-BIL.

    Raises:
        InputError: As there, or if an image is in train.txt and in another list, or a setting is out of its range.
    """

    title = "the annotators' images"

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
        **settings: Any,
    ) -> None:
        """See the class."""
        self.classes, self.num_classes, self.colours = tuple(classes), len(classes), distinct_colours(len(classes))
        self.missing, self.void = missing, void
        self.validation_share, self.validation_seed = validation_share, validation_seed
        self._check_settings()
        left_out = {} if void is None else {void: self.ignore_index}
        hint = " If a value marks pixels that the annotator left out, set data.void to it."
        self.values = MaskValues({**{each: each for each in range(self.num_classes)}, **left_out}, 255, hint=hint)
        self._wanted = annotators
        super().__init__(root, split, **settings)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read one image and its masks; indices count as in a list."""
        index = range(len(self))[index]
        image, votes = self._decode(index)
        label = majority_vote(votes, self.num_classes, self.ignore_index)
        return {"image": image, "votes": votes, "label": label, "index": torch.tensor(index)}

    def remarks(self) -> list[str]:
        """As in `PairedImages`, and of which images an annotator has no mask."""
        return super().remarks() + [
            f"{annotator} has no mask of {len(names)} of the {len(self)} images of the {self.split} split: "
            f"{', '.join(names)}."
            for annotator, names in self._lacking().items()
        ]

    def _check_settings(self) -> None:
        share = self.validation_share
        if not 2 <= self.num_classes <= self.ignore_index:
            raise InputError(
                f"classes: expected the names of 2 to {self.ignore_index} classes, the background's among them, got "
                f"{self.num_classes}."
            )
        if self.missing not in ("error", "ignore"):
            raise InputError(f"missing is {self.missing}, but must be error or ignore.")
        if self.void is not None and not self.num_classes <= self.void <= 255:
            raise InputError(f"void is {self.void}, but must be no class and at most 255: {self.num_classes} to 255.")
        if share is not None and not 0 < share < 1:
            raise InputError(f"validation_share is {share}, but must be between 0 and 1.")

    def _read_ids(self) -> tuple[str, ...]:
        share = self.validation_share
        if share is None:
            hint = "; set data.validation_share to validate on a share of train.txt" if self.split == "val" else ""
            return read_split(self.root, self.split, hint)
        if self.split == "test":
            return read_split(self.root, "test", splits=("train", "test"))
        ids = read_split(self.root, "train", splits=("train", "test"))
        count = round(share * len(ids))
        if not 0 < count < len(ids):
            raise InputError(f"validation_share {share} of {len(ids)} images leaves a split without images.")
        validation = set(draw_order(ids, self.validation_seed)[:count])
        return tuple(name for name in ids if (name in validation) == (self.split == "val"))

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

    def _find_pairs(self) -> list[Pair]:
        self.annotators = self._find_annotators(self._wanted)
        ids = self._read_ids()
        pairs = [self._pair(annotator, name) for name in ids for annotator in self.annotators]
        if self.missing == "error":
            return pairs
        found = [pair for pair in pairs if pair.mask.is_file()]
        if unlabelled := set(ids).difference(pair.id for pair in found):
            raise InputError(
                f"{len(unlabelled)} images of the {self.split} split have no mask from any annotator; one is "
                f"{self._pair(self.annotators[0], min(unlabelled)).image}."
            )
        return found

    def _pair(self, annotator: str, name: str) -> Pair:
        return Pair(name, self.root / "images" / f"{name}.png", self.root / "masks" / annotator / f"{name}.png")

    def _lacking(self) -> dict[str, list[str]]:
        """Return the ids that an annotator has no mask of, for those who lack any."""
        lacking = {
            annotator: [name for name in self.ids if not self._pair(annotator, name).mask.is_file()]
            for annotator in self.annotators
        }
        return {annotator: names for annotator, names in lacking.items() if names}

    def _check(self) -> None:
        if self.missing == "error" and (lacking := self._lacking()):
            annotator, names = next(iter(lacking.items()))
            complete = [name for name in self.annotators if name not in lacking]
            raise InputError(
                f"{sum(map(len, lacking.values()))} masks of the {self.split} split are missing; the first is "
                f"{self._pair(annotator, names[0]).mask}. Set data.missing to ignore to do without their votes, or "
                f"data.annotators to those who have masks of all images ({', '.join(complete) or 'none here'})."
            )
        super()._check()

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the scaled image, float32 (3, H, W), and votes, uint8 (R, H, W)."""
        pairs = [self._pair(annotator, self.ids[index]) for annotator in self.annotators]
        image, size = self._read_scaled_image(pairs[0].image)
        nothing = torch.full(image.shape[1:], self.ignore_index, dtype=torch.uint8)
        votes = [self._read_scaled_label(pair, size) if pair.mask.is_file() else nothing for pair in pairs]
        return image, torch.stack(votes)

    def _read_scaled_image(self, path: Path) -> tuple[Tensor, tuple[int, int]]:
        """As in `PairedImages`, but float32."""
        image = read_image(path)
        size = (image.shape[2], image.shape[1])
        width, height = self._scaled(size)
        if (width, height) != size:
            image = functional.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]
        return image, size


class RatersData(PairedData):
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

    images = Raters

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
        super().__init__(root, scale=scale, cache=cache, **settings)
        self._settings: dict[str, Any] = {
            "classes": classes,
            "annotators": annotators,
            "missing": missing,
            "void": void,
            "validation_share": validation_share,
            "validation_seed": validation_seed,
        }

    def _options(self) -> dict[str, Any]:
        return self._settings

"""Data sets that are images and masks in files: what all of them share."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from softjaccard.data.colours import Colours
from softjaccard.data.images import FIRST, read_rgb
from softjaccard.data.masks import MaskValues, read_index_mask
from softjaccard.data.module import SegmentationData, Split
from softjaccard.data.unlabelled import UnlabelledImages
from softjaccard.errors import InputError, nearest_names

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Pair(NamedTuple):
    """The files of one image, which need not exist.

    Attributes:
        id: The image's name in results.
        image: The picture.
        mask: Its mask.
    """

    id: str
    image: Path
    mask: Path


class Counts(NamedTuple):
    """Official numbers of images; `test` is None where the labels of the test images are not public."""

    train: int
    val: int
    test: int | None = None


class PairedImages(Dataset[dict[str, Tensor]], ABC):
    """Images and masks from files; a data set's own class says where they are and what the masks' values mean.

    Each item holds plain tensors:

    - `image`: float32 (3, H, W) in [0, 1]
    - `label`: int64 (H, W), `ignore_index` where nothing is labelled
    - `index`: int64 (), the position in the split; `ids[index]` is the image's name

    Images may be grey, have a palette, an alpha channel (left out) or 16 bits (rounded to 8), and are read the way up
    that viewers show them.

    Args:
        root: The folder of the data set.
        split: Which part. A data set without public test labels has its val images as test.
        scale: Factor on height and width (0.5 is half resolution): the image is averaged (bilinear, antialiased), the
            label takes the nearest pixel.
        cache: Keep the decoded, scaled images in memory, so that later epochs do not decode again.
        check: Look whether all files are there and whether the first ones can be used.

    Raises:
        InputError: If a folder, split list, image or mask is missing, or one of the first cannot be used as such.

    Warns:
        UserWarning: If a split has not the official number of images, as a part of the data set has.
    """

    title: ClassVar[str]
    official_counts: ClassVar[Counts | None] = None
    classes: tuple[str, ...]
    colours: Colours
    num_classes: int
    ignore_index: int = 255
    values: MaskValues

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        *,
        scale: float = 1.0,
        cache: bool = False,
        check: bool = True,
    ) -> None:
        """See the class."""
        if scale <= 0:
            raise InputError(f"scale is {scale}, but must be above 0.")
        self.root, self.split, self.scale, self.cache = existing_folder(Path(root)), split, scale, cache
        self._decoded: dict[int, tuple[Tensor, Tensor]] = {}
        if split == "test" and self.test_is_val():
            self.split = "val"
        self.pairs = tuple(self._find_pairs())
        self.ids = tuple(dict.fromkeys(pair.id for pair in self.pairs))
        if check:
            self._check()

    @classmethod
    def test_is_val(cls) -> bool:
        """Whether the labels of the test images are not public, so that the val images stand in for them."""
        return cls.official_counts is not None and cls.official_counts.test is None

    @abstractmethod
    def _find_pairs(self) -> Sequence[Pair]:
        """Return the split's pairs, at least one; raise InputError where that cannot be known.

        An image with several masks has a pair for each, one after the other.
        """

    @property
    def image_files(self) -> Mapping[str, Path]:
        """The images' files, by id."""
        return {pair.id: pair.image for pair in self.pairs}

    def __len__(self) -> int:
        """Return the number of images in the split."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read one image and its label; indices count as in a list."""
        index = range(len(self))[index]
        image, label = self._decode(index)
        return {"image": image.float() / 255, "label": label.long(), "index": torch.tensor(index)}

    def read_image(self, path: Path) -> Tensor:
        """Return a picture, scaled as the items' are: (3, H, W), uint8, or float32 in [0, 1].

        Raises:
            InputError: If it cannot be used.
        """
        return self._read_scaled_image(path)[0]

    def read_label(self, pair: Pair) -> np.ndarray:
        """Return a mask's class ids, unsigned integers (H, W), at the size of the file.

        Raises:
            InputError: If the mask cannot be used, or has a value that the data set does not know.
        """
        return self.values.to_ids(read_index_mask(pair.mask), pair.mask)

    def count_warning(self) -> str | None:
        """Return a sentence if the split has not the official number of images."""
        official = getattr(self.official_counts, self.split, None)
        if official in (None, len(self)):
            return None
        return f"The {self.split} split of {self.title} in {self.root} has {len(self)} images, officially {official}."

    def remarks(self) -> list[str]:
        """Return what the user should know of the split though it can be used, a sentence each."""
        warning = self.count_warning()
        return [warning] if warning else []

    def _check(self) -> None:
        images = list(dict.fromkeys(pair.image for pair in self.pairs))
        for what, paths in (("image", images), ("mask", [pair.mask for pair in self.pairs])):
            missing = [path for path in paths if not path.is_file()]
            if missing:
                hint = " Images without masks can be in another folder, data.unlabelled." if what == "mask" else ""
                raise InputError(
                    f"{len(missing)} of the {len(paths)} {what} files of the {self.split} split of {self.title} are "
                    f"missing; the first is {missing[0]}.{hint}"
                )
        for index in range(min(FIRST, len(self))):
            self._decode(index)
        warning = self.count_warning()
        if warning:
            warnings.warn(warning, stacklevel=3)

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        decoded = self._decoded.get(index) or self._read(index)
        if self.cache:
            self._decoded[index] = decoded
        return decoded

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the scaled image, uint8 (3, H, W), and label, unsigned integers (H, W)."""
        pair = self.pairs[index]
        image, size = self._read_scaled_image(pair.image)
        return image, self._read_scaled_label(pair, size)

    def _read_scaled_image(self, path: Path) -> tuple[Tensor, tuple[int, int]]:
        """Return a picture, scaled, uint8 (3, H, W), and its own (width, height)."""
        picture = read_rgb(path)
        pixels = np.array(picture.resize(self._scaled(picture.size), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), picture.size

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = size
        return max(1, round(width * self.scale)), max(1, round(height * self.scale))

    def _read_scaled_label(self, pair: Pair, size: tuple[int, int]) -> Tensor:
        """Return a mask's class ids, scaled; `size` is the image's own (width, height)."""
        ids = self.read_label(pair)
        check_sizes(pair, size, ids)
        return torch.from_numpy(np.array(Image.fromarray(ids).resize(self._scaled(size), Image.Resampling.NEAREST)))


class PairedData(SegmentationData):
    """The splits of a data set of files as loaders.

    Args:
        root: The folder of the data set.
        scale: Factor on height and width of images and labels.
        cache: Keep decoded images in memory.
        settings: As in `SegmentationData`.
    """

    images: ClassVar[type[PairedImages]]

    def __init__(self, root: str, *, scale: float = 1.0, cache: bool = False, **settings: Any) -> None:
        """See the class."""
        super().__init__(**settings)
        self.root, self.scale, self.cache = root, scale, cache

    def dataset(self, split: Split) -> PairedImages:
        """Open and check one split."""
        return self.open(split)

    def open(self, split: Split, *, check: bool = True) -> PairedImages:
        """Open one split.

        Args:
            split: Which part.
            check: Whether files are looked at, as in `PairedImages`.
        """
        return self.images(self.root, split, scale=self.scale, cache=self.cache, check=check, **self._options())

    def open_unlabelled(self, folder: Path) -> UnlabelledImages:
        """As in `SegmentationData`, read, scaled and kept as the data set's own images are."""
        train: Any = self.datasets["train"]
        images = UnlabelledImages(folder, train.read_image, cache=self.cache)
        for split in self.splits()[1:]:
            tested = {pair.image.resolve() for pair in self.open(split, check=False).pairs}
            if shared := [path for path in images.paths if path.resolve() in tested]:
                raise InputError(
                    f"data.unlabelled: {len(shared)} of the images in {folder} are {split} images, by which the "
                    f"network is scored; the first is {shared[0]}. Take them out."
                )
        return images

    def splits(self) -> tuple[Split, ...]:
        """Return the splits that have images of their own."""
        return ("train", "val") if self.images.test_is_val() else SPLITS

    def _options(self) -> dict[str, Any]:
        """Return further arguments of the data set."""
        return {}


def check_sizes(pair: Pair, expected: tuple[int, int], ids: np.ndarray) -> None:
    """Raise InputError if a mask's ids (H, W) differ in size from their image, `expected` (width, height)."""
    size = (ids.shape[1], ids.shape[0])
    if expected != size:
        raise InputError(
            f"Image and mask of {pair.id} differ in size (width, height): {pair.image} has {expected}, "
            f"{pair.mask} has {size}."
        )


def existing_folder(path: Path) -> Path:
    """Return the path of a folder, with ~ expanded.

    Raises:
        InputError: If there is none; the message has the names most like it.
    """
    path = path.expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{path} is no folder.")
    # The nearest folder that exists, and the name that is missing there.
    missing = next(each for each in (path, *path.parents) if each.parent.is_dir())
    folders = [each.name for each in missing.parent.iterdir() if each.is_dir() and not each.name.startswith(".")]
    where = "" if missing == path else f", because {missing} is missing"
    raise InputError(f"There is no folder {path}{where}. {nearest_names(missing.name, folders)}")


def first_folder(root: Path, names: Sequence[str], holding: str, title: str) -> Path:
    """Return the first of some folders under the root that holds a folder or file of a name.

    Args:
        root: An existing folder.
        names: Relative paths to look at; "." is the root itself.
        holding: A relative path, or a pattern with a star.
        title: Of the data set.

    Raises:
        InputError: If none does.
    """
    places = [root / name for name in names]
    for place in places:
        if next(place.glob(holding), None) is not None:
            return place
    raise InputError(
        f"{title} is not in {root}: {' or '.join(str(place / holding) for place in places)} was looked for."
    )


def pairs_in_folders(images: Path, masks: Path, image_ending: str, mask_ending: str, name: str = "*") -> list[Pair]:
    """Return a pair for each id that an image or a mask has, in order.

    Args:
        images: Where the images are.
        masks: Where the masks are; may be the same folder.
        image_ending: What follows the id in an image's name.
        mask_ending: What follows the id in a mask's name.
        name: Pattern of the ids; `*/*` looks into sub-folders.

    Raises:
        InputError: If a folder is missing, or there are neither images nor masks.
    """
    ids = {
        path.relative_to(folder).as_posix().removesuffix(ending)
        for folder, ending in ((images, image_ending), (masks, mask_ending))
        for path in existing_folder(folder).glob(f"{name}{ending}")
        if not path.name.startswith(".")
    }
    if not ids:
        raise InputError(f"There are no images: {images / f'{name}{image_ending}'} was looked for.")
    return [Pair(each, images / f"{each}{image_ending}", masks / f"{each}{mask_ending}") for each in sorted(ids)]

"""Labels on a part of the images only: which part it is, and what is drawn of the other images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from softjaccard.data.images import FIRST, PICTURE_ENDINGS, pictures_in, read_image
from softjaccard.data.lists import draw_order, read_list
from softjaccard.data.samplers import EpochSampler
from softjaccard.data.transforms import (
    IGNORE_INDEX,
    PADDING_GREY,
    PhotometricSettings,
    TrainingTransform,
    collate_padded,
)
from softjaccard.errors import InputError, nearest_names

if TYPE_CHECKING:
    from softjaccard.data.module import Batch, SegmentationDataset

STRONG_VIEWS = 2
"""Of each unlabelled image, as UniMatch has them."""

STRONG = PhotometricSettings(
    brightness=0.5,
    contrast=0.5,
    saturation=0.5,
    hue=0.25,
    jitter_probability=0.8,
    grey_probability=0.2,
    blur_probability=0.5,
    blur_sigma=(0.1, 2.0),
)
"""What distinguishes a strong view from a weak one, besides a pasted box; as in UniMatch's code (arXiv 2208.09910)."""

BOX_PROBABILITY = 0.5
BOX_AREA = (0.02, 0.4)
"""Least and largest share of the crop that a pasted box has; as in UniMatch's code, like the other two numbers."""
BOX_ASPECT = (0.3, 1 / 0.3)
"""Least and largest ratio of a box's height to its width."""


class _Stream(IntEnum):
    """What is drawn independently, a seed number each before those of repetitions and views."""

    LABELLED = 1
    WEAK = 2
    STRONG = 3
    BOX = 4
    PARTNER = 5
    PARTNER_STRONG = 6


class Partition(NamedTuple):
    """Positions of images, in order."""

    labelled: tuple[int, ...]
    """In the training split, of those whose labels are used."""
    unlabelled: tuple[int, ...]
    """In the training split, of those whose labels are not looked at; or in a folder of images without labels."""


def partition(
    ids: Sequence[str],
    labelled: float | str,
    unlabelled: str | None = None,
    seed: int = 0,
    files: Mapping[str, Path] | None = None,
) -> Partition:
    """Divide the images of a training split.

    Args:
        ids: Of all of them.
        labelled: As in `choose_labelled`.
        unlabelled: The file of a list of the images without labels; None takes all others.
        seed: As in `choose_labelled`.
        files: Likewise.

    Raises:
        InputError: As `choose_labelled` for either list, or if both have the same id, or none is left without a label.

    Example:
        >>> partition(["a", "b", "c", "d", "e", "f"], 1 / 3)
        Partition(labelled=(1, 4), unlabelled=(0, 2, 3, 5))
    """
    listed = None if unlabelled is None else _listed("unlabelled", unlabelled, ids, files or {})
    chosen = choose_labelled(ids, labelled, seed, without=listed or (), files=files)
    others = tuple(sorted(set(range(len(ids))).difference(chosen))) if listed is None else listed
    if both := sorted(set(chosen).intersection(others)):
        raise InputError(
            f"data.unlabelled: {len(both)} of the ids in {unlabelled} are among the labelled ones, too; the first is "
            f"{ids[both[0]]}. Remove them from one of the lists."
        )
    if not others:
        raise InputError(
            f"data.labelled: {labelled} has all training images; none is left without a label. Take some out, or set "
            "data.unlabelled to a folder of others."
        )
    return Partition(chosen, others)


def choose_labelled(
    ids: Sequence[str],
    labelled: float | str,
    seed: int = 0,
    *,
    without: Sequence[int] = (),
    files: Mapping[str, Path] | None = None,
) -> tuple[int, ...]:
    """Return the positions of the images of a training split whose labels are used, in order.

    Args:
        ids: Of all images of the split.
        labelled: The share of them that have labels; or the file of a list of them. A line of it has an id or the path
            of an image file, or begins with one, as in the lists that semi-supervised methods publish:
            "JPEGImages/ID.jpg SegmentationClass/ID.png". Of a path the end suffices, if it is that of one image only.
        seed: Of what is drawn for a share. Which images these are depends on their ids and this number alone.
        without: Positions of images that no share has.
        files: The images' files, by id.

    Raises:
        InputError: If a share leaves no image on one of the sides, or a list cannot be read or has an id that the split
            has not.
    """
    if isinstance(labelled, str):
        return _listed("labelled", labelled, ids, files or {})
    count = round(labelled * len(ids)) if 0 < labelled < 1 else 0
    left_out = {ids[index] for index in without}
    possible = [each for each in draw_order(ids, seed) if each not in left_out]
    if not 0 < count < len(ids) or count > len(possible):
        raise InputError(
            f"data.labelled is {labelled}, but must be a share above 0 and below 1 that leaves some of the "
            f"{len(ids)} training images on both sides, or the file of a list."
        )
    return _positions(ids, possible[:count])


def _listed(setting: str, path: str, ids: Sequence[str], files: Mapping[str, Path]) -> tuple[int, ...]:
    """Return the positions of the images of a list, all of which must be among others."""
    known = set(ids)
    by_name: dict[str, list[str]] = {}
    for each, image in files.items():
        by_name.setdefault(image.name, []).append(each)

    def find(text: str) -> str | None:
        end = PurePosixPath(text.replace("\\", "/"))
        alike = [each for each in by_name.get(end.name, ()) if f"/{files[each].as_posix()}".endswith(f"/{end}")]
        return text if text in known else alike[0] if len(alike) == 1 else None

    def to_id(line: str) -> str:
        return find(line.split(maxsplit=1)[0]) or find(line) or line  # names may have spaces

    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"data.{setting} is {path}, but there is no such file; expected the file of a list of images, one a line"
            f"{', or a share such as 0.125' if setting == 'labelled' else ''}."
        )
    try:
        listed = read_list(file, to_id=to_id)
    except InputError as error:
        raise InputError(f"data.{setting}: {error}") from error
    unknown = [each for each in listed if each not in known]
    if unknown:
        raise InputError(
            f"data.{setting}: {len(unknown)} of the {len(listed)} ids in {path} are not in the training split; the "
            f"first is {unknown[0]}. {nearest_names(unknown[0], ids)}"
        )
    return _positions(ids, listed)


def _positions(ids: Sequence[str], part: Sequence[str]) -> tuple[int, ...]:
    chosen = set(part)
    return tuple(index for index, each in enumerate(ids) if each in chosen)


class UnlabelledImages(Dataset[dict[str, Tensor]]):
    """The images in a folder and its sub-folders, in the order of their paths; items have an `image` and nothing else.

    Args:
        folder: With the images.
        read: Returns an image (3, H, W), uint8 or float32 in [0, 1]; by default as it is.
        cache: Keep what was read in memory.

    Raises:
        InputError: If there are no images, or one of the first cannot be read.
    """

    def __init__(self, folder: Path, read: Callable[[Path], Tensor] = read_image, *, cache: bool = False) -> None:
        """See the class."""
        self.folder, self.paths = folder, tuple(pictures_in(folder))
        self._read, self._cache = read, cache
        self._decoded: dict[int, Tensor] = {}
        if not self.paths:
            looked_for = ", ".join(f"*{ending}" for ending in PICTURE_ENDINGS)
            raise InputError(f"data.unlabelled: there are no images in the folder {folder}; looked for {looked_for}.")
        for index in range(min(FIRST, len(self))):
            self._decode(index)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read one image."""
        image = self._decode(index)
        return {"image": image if image.is_floating_point() else image.float() / 255}

    def _decode(self, index: int) -> Tensor:
        if index in self._decoded:
            return self._decoded[index]
        try:
            image = self._read(self.paths[index])
        except InputError as error:
            raise InputError(f"data.unlabelled: mend an image or take it out of the folder: {error}") from error
        if self._cache:
            self._decoded[index] = image
        return image


class Draw(NamedTuple):
    """What one sample of a training batch is made of; images by their positions, as in a `Partition`."""

    epoch: int
    labelled: int
    repetition: int
    """How often all labelled images have come in this epoch before."""
    unlabelled: int
    partner: int
    """The unlabelled image of which a box is pasted into the strong views."""


class PartitionSampler(EpochSampler):
    """Every unlabelled image once in an epoch, each with a labelled one and a partner.

    Labelled images come again, in a new order, when all have come. Partners are the unlabelled images in an order of
    their own. All are functions of (seed, epoch); which labelled image comes does not depend on the unlabelled ones.
    """

    def __init__(self, images: Partition, seed: int, *, rank: int = 0, ranks: int = 1) -> None:
        """See the class."""
        super().__init__(len(images.unlabelled), seed, rank=rank, ranks=ranks)
        self._images = images

    def __iter__(self) -> Iterator[Draw]:
        """Go through this device's share, without what it has had."""
        labelled, unlabelled = self._images
        repetitions = math.ceil(len(unlabelled) / len(labelled))
        with_label = [
            (labelled[place], repetition)
            for repetition in range(repetitions)
            for place in self.order(len(labelled), _Stream.LABELLED, repetition)
        ]
        first, second = (self.order(len(unlabelled), stream) for stream in (_Stream.WEAK, _Stream.PARTNER))
        for position in self.positions():
            yield Draw(self.epoch, *with_label[position], unlabelled[first[position]], unlabelled[second[position]])


class UnlabelledViews:
    """Makes the views of an unlabelled image; its label is not looked at.

    Scale, crop and flip make the weak view. Strong views have its pixels with other colours and sharpness
    (`STRONG`), and with probability `BOX_PROBABILITY` a box of the same strong view of a partner, an image with a weak
    view of its own (CutMix, Yun et al., arXiv 1905.04899). Each number is drawn by (seed, epoch, image, stream).

    Args:
        images: The data set that has them: the training split, or a folder.
        transform: Scale, crop and flip.
        seed: Of all that is drawn.
        strong: Number of strong views.
    """

    def __init__(
        self,
        images: SegmentationDataset | UnlabelledImages,
        transform: TrainingTransform,
        seed: int,
        strong: int = STRONG_VIEWS,
    ) -> None:
        """See the class."""
        self._images, self._transform, self._seed, self._strong = images, transform, seed, strong

    def __call__(self, draw: Draw) -> dict[str, Tensor]:
        """Return the entries of a batch that are of unlabelled images, as `SegmentationData` describes them."""
        weak, valid = self._weak(draw.epoch, draw.unlabelled, _Stream.WEAK)
        partner, partner_valid = self._weak(draw.epoch, draw.partner, _Stream.PARTNER)
        strong, boxes = [], []
        for view in range(self._strong):
            image = _change(weak, valid, self._random(draw.epoch, draw.unlabelled, _Stream.STRONG, view))
            box = draw_box(valid.shape, self._random(draw.epoch, draw.unlabelled, _Stream.BOX, view))
            if box.any():
                random = self._random(draw.epoch, draw.partner, _Stream.PARTNER_STRONG, view)
                image = torch.where(box, _change(partner, partner_valid, random), image)
            strong.append(image)
            boxes.append(box)
        return {
            "weak_image": weak,
            "weak_valid": valid,
            "partner_image": partner,
            "partner_valid": partner_valid,
            "strong_image": torch.stack(strong),
            "box": torch.stack(boxes),
        }

    def _weak(self, epoch: int, index: int, stream: _Stream) -> tuple[Tensor, Tensor]:
        """Return the weak view (3, H, W), and which of its pixels are not padding (H, W)."""
        image = self._images[index]["image"]
        nothing = torch.zeros(image.shape[-2:], dtype=torch.int64)
        view = self._transform({"image": image, "label": nothing}, (self._seed, epoch, index, stream))
        return view["image"], view["label"] != IGNORE_INDEX

    def _random(self, epoch: int, index: int, stream: _Stream, view: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, epoch, index, stream, view))


def _change(image: Tensor, valid: Tensor, random: np.random.Generator) -> Tensor:
    """Return the strong view of a weak one, whose valid pixels are a rectangle; padding stays."""
    inside = image[:, valid.any(1)][:, :, valid.any(0)]
    changed = image.clone()
    changed[:, valid] = STRONG.change(inside, random).flatten(1)
    return changed


def draw_box(size: Sequence[int], random: np.random.Generator) -> Tensor:
    """Return a boolean map (H, W) that is true in a box; nowhere with probability 1 - BOX_PROBABILITY.

    As in UniMatch's code, an area is drawn from its range, and then an aspect and the upper left corner until the box
    lies in the map.

    Example:
        >>> box = draw_box((40, 60), np.random.default_rng(2))
        >>> box.shape, int(box.any(1).sum()), int(box.any(0).sum())
        (torch.Size([40, 60]), 19, 17)
    """
    height, width = size
    box = torch.zeros(height, width, dtype=torch.bool)
    if random.random() >= BOX_PROBABILITY:
        return box
    area = random.uniform(*BOX_AREA) * height * width
    while True:
        aspect = random.uniform(*BOX_ASPECT)
        # Where the map is long and thin, a box of that area and aspect may not fit.
        rows = min(max(1, round(math.sqrt(area * aspect))), height)
        columns = min(max(1, round(math.sqrt(area / aspect))), width)
        top, left = int(random.integers(height)), int(random.integers(width))
        if top + rows <= height and left + columns <= width:
            box[top : top + rows, left : left + columns] = True
            return box


class PartlyLabelledImages(Dataset[tuple["Batch", "Batch"]]):
    """Samples of labelled images, each with the views of an unlabelled one, fetched by a `Draw`.

    Args:
        labelled: Augmented samples, fetched by (epoch, index, and further seed numbers).
        views: Of unlabelled images; None makes none.
    """

    def __init__(self, labelled: Dataset[Batch], views: UnlabelledViews | None) -> None:
        """See the class."""
        self._labelled, self._views = labelled, views

    def __getitem__(self, draw: Draw) -> tuple[Batch, Batch]:
        """Return both."""
        labelled = self._labelled[draw.epoch, draw.labelled, _Stream.LABELLED, draw.repetition]
        return labelled, {} if self._views is None else self._views(draw)


def collate_views(samples: Sequence[tuple[Batch, Batch]], multiple: int = 1) -> Batch:
    """Stack labelled samples as `collate_padded` does, and views, all of one size, padded to that of the batch."""
    batch = collate_padded([labelled for labelled, _ in samples], multiple)
    height, width = batch["label"].shape[-2:]
    for name in samples[0][1]:
        stacked = torch.stack([views[name] for _, views in samples])
        missing = (0, width - stacked.shape[-1], 0, height - stacked.shape[-2])
        batch[name] = functional.pad(stacked, missing, value=PADDING_GREY if stacked.is_floating_point() else 0)
    return batch

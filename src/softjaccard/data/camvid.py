"""CamVid: 701 road scenes with 11 classes, in the layout of the SegNet tutorial's split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from softjaccard.data.images import open_image
from softjaccard.data.module import SegmentationData, Split
from softjaccard.errors import InputError


class CamVid(Dataset[dict[str, Tensor]]):
    """CamVid's images and index masks, read from the folder the user names.

    Layout: `images/SPLIT/ID.jpg`, `annotations/SPLIT/ID.png` (8-bit ids: 0 to 10 as in `classes`, 11 ignored) and
    `SPLIT.txt` with one ID per line, for the splits train, val and test.

    Each item holds plain tensors:

    - `image`: float32 (3, H, W) in [0, 1]
    - `label`: int64 (H, W), `ignore_index` where nothing is labelled
    - `index`: int64 (), the position in the split; `ids[index]` is the file's name

    Args:
        root: The folder with `images`, `annotations` and the split files.
        split: Which part.
        scale: Factor on height and width (0.5 is half resolution): the image is averaged (bilinear, antialiased), the
            label takes the nearest pixel.
        cache: Keep the decoded, scaled images in memory (91 MB for the whole set at half resolution), so that later
            epochs do not decode again.

    Raises:
        InputError: If a folder, split file, image or annotation is missing, or one cannot be used as such.
    """

    classes: tuple[str, ...] = (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    colours = (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    )  # fmt: skip
    num_classes = len(classes)
    ignore_index = 11

    def __init__(self, root: str | Path, split: Split = "train", *, scale: float = 1.0, cache: bool = False) -> None:
        """See the class."""
        if scale <= 0:
            raise InputError(f"scale is {scale}, but must be above 0.")
        self.root, self.split, self.scale, self.cache = Path(root).expanduser(), split, scale, cache
        self._decoded: dict[int, tuple[Tensor, Tensor]] = {}
        self.ids = self._read_ids()
        self._check_pairs()
        self._read(0)

    def __len__(self) -> int:
        """Return the number of images in the split."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read one image and its label; indices count as in a list."""
        index = range(len(self.ids))[index]
        image, label = self._decoded.get(index) or self._read(index)
        if self.cache:
            self._decoded[index] = image, label
        return {"image": image.float() / 255, "label": label.long(), "index": torch.tensor(index)}

    def _image_path(self, name: str) -> Path:
        return self.root / "images" / self.split / f"{name}.jpg"

    def _label_path(self, name: str) -> Path:
        return self.root / "annotations" / self.split / f"{name}.png"

    def _read_ids(self) -> tuple[str, ...]:
        if not self.root.is_dir():
            raise InputError(f"There is no folder {self.root}: give the root of CamVid, with images/ and annotations/.")
        path = self.root / f"{self.split}.txt"
        if not path.is_file():
            raise InputError(f"CamVid's list of the {self.split} split is missing: {path} was looked for.")
        ids = tuple(path.read_text(encoding="utf-8").split())
        if not ids:
            raise InputError(f"CamVid's list of the {self.split} split is empty: {path}.")
        return ids

    def _check_pairs(self) -> None:
        for what, path_of in (("image", self._image_path), ("annotation", self._label_path)):
            missing = [path for path in map(path_of, self.ids) if not path.is_file()]
            if missing:
                raise InputError(
                    f"{len(missing)} of the {len(self.ids)} {what} files named in {self.split}.txt are missing; "
                    f"the first is {missing[0]}."
                )

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the scaled image, uint8 (3, H, W), and label, uint8 (H, W)."""
        name = self.ids[index]
        picture, mask = open_image(self._image_path(name)).convert("RGB"), open_image(self._label_path(name))
        if mask.mode not in ("L", "P"):
            raise InputError(f"{self._label_path(name)} has mode {mask.mode}; expected 8-bit class ids (L or P).")
        if picture.size != mask.size:
            raise InputError(
                f"Image and annotation of {name} differ in size (width, height): {self._image_path(name)} has "
                f"{picture.size}, {self._label_path(name)} has {mask.size}."
            )
        size = (max(1, round(picture.width * self.scale)), max(1, round(picture.height * self.scale)))
        pixels = np.array(picture.resize(size, Image.Resampling.BILINEAR))
        ids = np.array(mask.resize(size, Image.Resampling.NEAREST))
        if ids.max() > self.ignore_index:
            raise InputError(
                f"{self._label_path(name)} holds class id {ids.max()}; CamVid has 0 to {self.num_classes - 1}, "
                f"and {self.ignore_index} for unlabelled pixels."
            )
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), torch.from_numpy(ids)


class CamVidData(SegmentationData):
    """CamVid's three splits as loaders.

    Args:
        root: CamVid's folder, with images/, annotations/ and train.txt, val.txt, test.txt.
        scale: Factor on height and width of images and labels.
        cache: Keep decoded images in memory.
        settings: As in `SegmentationData`.
    """

    def __init__(self, root: str, *, scale: float = 0.5, cache: bool = True, **settings: Any) -> None:
        """See the class."""
        super().__init__(**settings)
        self.root, self.scale, self.cache = root, scale, cache

    def dataset(self, split: Split) -> CamVid:
        """Open one split."""
        return CamVid(self.root, split, scale=self.scale, cache=self.cache)

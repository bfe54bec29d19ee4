"""Any folder of images and masks, with a file that names the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from softjaccard.data.colours import Colours, distinct_colours
from softjaccard.data.images import PICTURE_ENDINGS, pictures_in
from softjaccard.data.lists import draw_order, read_split, repeated
from softjaccard.data.masks import MaskValues, pack_colours, read_colour_mask, read_index_mask, show_packed
from softjaccard.data.module import Split
from softjaccard.data.pairs import SPLITS, Pair, PairedData, PairedImages, existing_folder
from softjaccard.errors import InputError, nearest_names
from softjaccard.settings import read_yaml

_IGNORED = 255


class ImageFolder(PairedImages):
    """Images and masks in a folder of the user's.

    `images/` and `masks/` hold files of the same names, apart from the endings, in the same sub-folders if any; masks
    are PNG, TIFF, BMP or GIF. The class file is YAML:

    ```yaml
    masks: index            # pixels are ids (the default), or
                            # colour: pixels have the colour of their class
    classes:
      - {name: background, id: 0}
      - {name: cell, id: 255, colour: [230, 159, 0]}
    ignored: [128]          # ids, or colours, of pixels that do not count
    ```

    Without an `id`, a class has its position in the list, from 0; `- cell` is short for `- {name: cell}`. A class's
    colour is that of its pixels where masks have colours; elsewhere it is for pictures only, and may be left out.

    Splits are, in this order,

    - shares of all images, drawn by a seed, if `shares` is given;
    - `train.txt`, `val.txt` and `test.txt` in the root, with one name per line as under `images/` (the ending may be
      left out), if there is any of them; none of train's may be in another;
    - the sub-folders `train`, `val` and `test` of `images/` and `masks/`.

    Args:
        root: The folder with images/ and masks/.
        split: Which part.
        classes: The class file; by default the root's `classes.yaml`.
        shares: Parts of the images that are val and test, such as (0.2, 0.1); train has the others.
        shares_seed: Of what is drawn for the shares; the run's own seed does not change the splits.
        settings: As in :class:`softjaccard.data.pairs.PairedImages`.
    """

    title = "the image folder"

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        *,
        classes: str | Path | None = None,
        shares: tuple[float, float] | None = None,
        shares_seed: int = 0,
        **settings: Any,
    ) -> None:
        """See the class."""
        if shares is not None and not (min(shares) >= 0 and 0 < sum(shares) < 1):
            raise InputError(f"shares are {shares}, but must be the parts of val and test, together above 0, below 1.")
        if shares_seed < 0:
            raise InputError(f"shares_seed is {shares_seed}, but must be at least 0.")
        self.shares, self.shares_seed = shares, shares_seed
        root = existing_folder(Path(root))
        file = _ClassFile(root / "classes.yaml" if classes is None else Path(classes).expanduser())
        self.classes, self.colours, self.values, self.has_colour_masks = file.read()
        self.num_classes, self.ignore_index = len(self.classes), self.values.ignore_index
        super().__init__(root, split, **settings)

    def read_label(self, pair: Pair) -> np.ndarray:
        """As in `PairedImages`, from an index or a colour mask."""
        values = pack_colours(read_colour_mask(pair.mask)) if self.has_colour_masks else read_index_mask(pair.mask)
        return self.values.to_ids(values, pair.mask)

    def _find_pairs(self) -> list[Pair]:
        folders = [existing_folder(self.root / name) for name in ("images", "masks")]
        images, masks = map(_files, folders)
        names = self._names(sorted({*images, *masks}))
        return [
            # A name with a star is of no file, and tells what was looked for.
            Pair(name, images.get(name, folders[0] / f"{name}.*"), masks.get(name, folders[1] / f"{name}.*"))
            for name in names
        ]

    def _names(self, names: Sequence[str]) -> Sequence[str]:
        """Return those of the names that are in the split."""
        if self.shares is not None:
            chosen: Sequence[str] = self._share(names)
        elif _listed(self.root):
            chosen = read_split(self.root, self.split, to_id=_without_ending)
        elif any((self.root / "images" / split).is_dir() for split in SPLITS):
            chosen = [each for each in names if each.startswith(f"{self.split}/")]
        else:
            raise InputError(
                f"The splits of {self.root} are not known: neither {self.root / 'train.txt'} nor "
                f"{self.root / 'images' / 'train'} is there. Make such lists or folders, or set data.shares, the parts "
                "that are val and test, such as [0.2,0.1]."
            )
        if not chosen:
            raise InputError(f"The {self.split} split of {self.root} is empty.")
        return chosen

    def _share(self, names: Sequence[str]) -> list[str]:
        order = draw_order(names, self.shares_seed)
        val, test = (round(len(names) * share) for share in self.shares or ())
        parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
        return sorted(parts[self.split])


class ImageFolderData(PairedData):
    """A folder of images and masks as loaders.

    Args:
        root: The folder with images/ and masks/.
        classes: The class file, YAML; by default the root's classes.yaml.
        shares: Parts of the images that are val and test, such as [0.2, 0.1]; without, the splits are those of
            train.txt, val.txt and test.txt, or of the sub-folders train, val and test.
        shares_seed: Of what is drawn for the shares; the run's own seed does not change the splits.
        scale: Factor on height and width of images and labels.
        cache: Keep decoded images in memory.
        settings: As in `SegmentationData`.
    """

    images = ImageFolder

    def __init__(
        self,
        root: str,
        *,
        classes: str | None = None,
        shares: tuple[float, float] | None = None,
        shares_seed: int = 0,
        scale: float = 1.0,
        cache: bool = False,
        **settings: Any,
    ) -> None:
        """See the class."""
        super().__init__(root, scale=scale, cache=cache, **settings)
        self.classes, self.shares, self.shares_seed = classes, shares, shares_seed

    def splits(self) -> tuple[Split, ...]:
        """Train, val, and test if there is one."""
        root = Path(self.root).expanduser()
        lists = _listed(root)
        has_test = self.shares[1] > 0 if self.shares else "test" in lists if lists else (root / "images/test").is_dir()
        return SPLITS if has_test else SPLITS[:2]

    def _options(self) -> dict[str, Any]:
        return {"classes": self.classes, "shares": self.shares, "shares_seed": self.shares_seed}


def _listed(root: Path) -> list[Split]:
    """Return the splits that have a list."""
    return [split for split in SPLITS if (root / f"{split}.txt").is_file()]


def _files(folder: Path) -> dict[str, Path]:
    """Return the pictures in a folder and its sub-folders by their names without ending."""
    files: dict[str, Path] = {}
    for path in pictures_in(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise InputError(f"{files[name]} and {path} have the same name; expected one of them.")
        files[name] = path
    return files


def _without_ending(name: str) -> str:
    path = Path(name.replace("\\", "/"))
    return (path.with_suffix("") if path.suffix.lower() in PICTURE_ENDINGS else path).as_posix()


class _ClassFile:
    """Reads a class file and says what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[tuple[str, ...], Colours, MaskValues, bool]:
        """Return the names and colours of the classes, the masks' values, and whether these are colours."""
        content = self._load()
        kind = content.get("masks", "index")
        if kind not in ("index", "colour"):
            self._fail(f"masks is {kind!r}; expected index or colour")
        has_colours = kind == "colour"
        classes = [self._class(each, position) for position, each in enumerate(content["classes"])]
        names = tuple(each["name"] for each in classes)
        default = distinct_colours(len(classes))
        colours = tuple(self._colour(c.get("colour", d)) for c, d in zip(classes, default, strict=True))
        if has_colours and not all("colour" in each for each in classes):
            self._fail("every class must have a colour, because masks is colour")
        values = [self._value(each["colour" if has_colours else "id"], has_colours) for each in classes]
        ignored = [self._value(each, has_colours) for each in content.get("ignored") or []]
        for what, entries in (("name", names), ("colour" if has_colours else "id", [*values, *ignored])):
            if repeated(entries) is not None:
                self._fail(f"the same {what} is there twice")
        ignore_index = _IGNORED if len(names) <= _IGNORED else np.iinfo(np.uint16).max
        table = {**{value: index for index, value in enumerate(values)}, **dict.fromkeys(ignored, ignore_index)}
        return names, colours, MaskValues(table, ignore_index, show_packed if has_colours else str), has_colours

    def _load(self) -> dict[str, Any]:
        if not self.path.is_file():
            raise InputError(f"The file that names the classes is missing: {self.path} was looked for.")
        content = read_yaml(self.path)
        if not isinstance(content, dict) or not isinstance(content.get("classes"), list) or not content["classes"]:
            self._fail("expected a list called classes")
        self._refuse_unknown(content, ("masks", "classes", "ignored"))
        if not isinstance(content.get("ignored") or [], list):
            self._fail("ignored must be a list")
        return content

    def _class(self, entry: Any, position: int) -> dict[str, Any]:
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            self._fail(f"class {position} is {entry}; expected a name, or {{name: NAME, id: ID, colour: [R, G, B]}}")
        self._refuse_unknown(entry, ("name", "id", "colour"))
        return {"id": position, **entry}

    def _value(self, value: Any, is_colour: bool) -> int:
        if is_colour:
            return int(pack_colours(np.array(self._colour(value), np.uint8)))
        if type(value) is not int or not 0 <= value <= np.iinfo(np.uint16).max:
            self._fail(f"an id is {value}; expected an integer from 0 to 65535")
        return value

    def _colour(self, value: Any) -> tuple[int, int, int]:
        if not (isinstance(value, (list, tuple)) and len(value) == 3 and all(type(c) is int for c in value)):
            self._fail(f"a colour is {value}; expected [RED, GREEN, BLUE]")
        if not all(0 <= channel <= 255 for channel in value):
            self._fail(f"a colour is {value}; expected 0 to 255 for each channel")
        red, green, blue = value
        return red, green, blue

    def _refuse_unknown(self, entry: dict[str, Any], known: Sequence[str]) -> None:
        for key in entry:
            if key not in known:
                self._fail(f"{key} is unknown. {nearest_names(str(key), known).rstrip('.')}")

    def _fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.path}: {problem}.")

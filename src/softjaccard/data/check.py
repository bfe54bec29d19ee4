"""Looks at every file of a data set, and says all that is wrong."""

from __future__ import annotations

import os
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from softjaccard.data.ade20k import ADE20KData
from softjaccard.data.camvid import CamVidData
from softjaccard.data.cityscapes import CityscapesData
from softjaccard.data.colours import hex_colour
from softjaccard.data.deepglobe import DeepGlobeLandData
from softjaccard.data.folder import ImageFolderData
from softjaccard.data.images import read_rgb
from softjaccard.data.module import Split
from softjaccard.data.pairs import Pair, PairedData, PairedImages, check_sizes, existing_folder
from softjaccard.data.raters import RatersData
from softjaccard.data.voc import VOCData
from softjaccard.errors import InputError, nearest_names

DATA_SETS: dict[str, type[PairedData]] = {
    "ade20k": ADE20KData,
    "annotators": RatersData,
    "camvid": CamVidData,
    "cityscapes": CityscapesData,
    "deepglobe-land": DeepGlobeLandData,
    "folder": ImageFolderData,
    "voc": VOCData,
}
"""The data sets of files, by the names that the command takes."""

_MOST_LISTED = 50


@dataclass(frozen=True)
class _Split:
    """What was found in a split: the pixels of each class and, at the end, ignored ones; and problems, a line each."""

    dataset: PairedImages
    pixels: np.ndarray
    problems: list[str]


def check_data_set(name: str, root: str, splits: Sequence[Split], settings: Sequence[str] = ()) -> None:
    """Check a data set; print its class histogram and what is wrong.

    Args:
        name: One of `DATA_SETS`.
        root: Its folder.
        splits: Which to check; none for all that the data set has.
        settings: More arguments of its data module, each as `--data.NAME=VALUE`.

    Raises:
        InputError: If the name or a setting is unknown, the root is missing, or anything is wrong.
    """
    console = Console()
    data = _open_data(name, root, settings)
    existing_folder(Path(root))
    checked, problems = [], []
    for split in splits or data.splits():
        try:
            checked.append(_check_split(data.open(split, check=False), console))
            problems.extend(checked[-1].problems)
        except InputError as error:
            problems.append(str(error))
    problems = list(dict.fromkeys(problems))  # what splits, or an image's masks, share is said once
    if checked:
        console.print(_histogram(checked))
    warnings = [f"Warning: {remark}" for each in checked for remark in each.dataset.remarks()]
    more = [f"... and {len(problems) - _MOST_LISTED} more."] if len(problems) > _MOST_LISTED else []
    for line in (*warnings, *problems[:_MOST_LISTED], *more):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    images = sum(len(each.dataset) for each in checked)
    if problems:
        what = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{name} in {root} has {what} (images checked: {images}); the first: {problems[0]}")
    console.print(f"Images and masks in order: {images}", highlight=False)


def _check_split(dataset: PairedImages, console: Console) -> _Split:
    """Decode every image and mask; compare their sizes, and the masks' values with what may be."""
    found = _Split(dataset, np.zeros(dataset.num_classes + 1, np.int64), [])
    images = [tuple(pairs) for _, pairs in groupby(dataset.pairs, attrgetter("image"))]
    # Threads are enough: decoders run beside each other.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        results = pool.map(partial(_check_image, dataset), images)
        title = f"Checking {dataset.split}"
        quiet = not console.is_terminal
        for problems, pixels in track(results, title, len(images), console=console, transient=True, disable=quiet):
            found.problems.extend(problems)
            np.add(found.pixels, pixels, out=found.pixels)
    finally:  # after Ctrl-C, without the files that are left
        pool.shutdown(cancel_futures=True)
    return found


def _check_image(dataset: PairedImages, pairs: Sequence[Pair]) -> tuple[list[str], np.ndarray]:
    """Return what is wrong with an image and its masks, and the pixels of each class and ignored."""
    problems: list[str] = []
    pixels = np.zeros(dataset.num_classes + 1, np.int64)
    size = None
    with _noting(problems):
        size = read_rgb(_existing(pairs[0].image)).size
    for pair in pairs:
        with _noting(problems):
            _existing(pair.mask)
            ids = dataset.read_label(pair)
            counted = np.where(ids == dataset.ignore_index, dataset.num_classes, ids)
            pixels += np.bincount(counted.ravel(), minlength=len(pixels))
            if size is not None:
                check_sizes(pair, size, ids)
    return problems, pixels


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} is missing.")
    return path


def _histogram(checked: Sequence[_Split]) -> Table:
    dataset = checked[0].dataset
    table = Table("id", "class", "colour", title=f"{dataset.title}: pixels of each class in %")
    for each in checked:
        table.add_column(each.dataset.split, justify="right")
    shares = [100 * each.pixels / max(1, each.pixels.sum()) for each in checked]
    for index, (name, colour) in enumerate(zip(dataset.classes, dataset.colours, strict=True)):
        swatch = f"[{hex_colour(colour)}]██[/]"
        table.add_row(str(index), escape(name), swatch, *(_percent(share[index]) for share in shares))
    table.add_row("", "ignored", "", *(_percent(share[-1]) for share in shares), end_section=True)
    table.add_row("", "images", "", *(str(len(each.dataset)) for each in checked))
    return table


def _percent(share: float) -> str:
    return f"{share:.3f}" if share else "-"


def list_data_sets() -> None:
    """Print the names of the data sets, with their classes and official numbers of images."""
    table = Table("NAME", "classes", "train", "val", "test", "data.class_path", box=None)
    for name, data in DATA_SETS.items():
        images = data.images
        official = images.official_counts
        numbers = [images.num_classes, *(each or "val" for each in official)] if official else [""] * 4
        table.add_row(name, *map(str, numbers), f"{data.__module__}.{data.__name__}")
    Console(width=100).print(table)


def _open_data(name: str, root: str, settings: Sequence[str]) -> PairedData:
    if name not in DATA_SETS:
        raise InputError(f"There is no data set {name}. {nearest_names(name, DATA_SETS)}")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(DATA_SETS[name], "data")
    known = [f"--data.{key}" for key in vars(parser.get_defaults().data)]
    for setting in settings:
        option = setting.partition("=")[0]
        if option not in known:
            raise InputError(f"{option} is unknown. {nearest_names(option, known)}")
    try:
        data: PairedData = parser.instantiate(parser.parse_args([f"--data.root={root}", *settings])).data
    except ArgumentError as error:
        raise InputError(str(error)) from error
    return data

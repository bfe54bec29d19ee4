"""Lists of images' ids: read from files, checked, and drawn from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from softjaccard.errors import InputError

_T = TypeVar("_T")


def read_list(path: Path, hint: str = "", to_id: Callable[[str], str] = str) -> tuple[str, ...]:
    """Read the ids of a split, one a line; blank lines do not count, nor do Windows line ends or a byte order mark.

    Args:
        path: The list, SPLIT.txt.
        hint: What the user could do without it.
        to_id: Makes an id of what a line says.

    Raises:
        InputError: If the file is missing, no UTF-8 text, empty, or has an id twice.
    """
    if not path.is_file():
        raise InputError(f"The list of the {path.stem} split is missing: {path} was looked for{hint}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: save it as such, one id a line.") from error
    ids = tuple(to_id(name) for line in lines if (name := line.strip()))
    if not ids:
        raise InputError(f"{path} is empty; expected one id a line.")
    if (twice := repeated(ids)) is not None:
        raise InputError(f"{path} has {twice} more than once.")
    return ids


def read_split(
    root: Path,
    split: str,
    hint: str = "",
    to_id: Callable[[str], str] = str,
    *,
    splits: Sequence[str] = ("train", "val", "test"),
) -> tuple[str, ...]:
    """Read the ids of a split of the user's own making; unlike val and test, train may share none with another split.

    Args:
        root: Where the lists are, SPLIT.txt.
        split: Which part.
        hint: As in `read_list`.
        to_id: As in `read_list`.
        splits: Those whose lists, if they are there, are compared.

    Raises:
        InputError: As `read_list`, or if an id is in train's list and in another one.
    """
    path = root / f"{split}.txt"
    ids = read_list(path, hint, to_id)
    for other in (root / f"{each}.txt" for each in splits if each != split and "train" in (each, split)):
        if other.is_file() and (shared := set(ids).intersection(read_list(other, to_id=to_id))):
            raise InputError(
                f"{path} and {other} both have {min(shared)} ({len(shared)} in all); take such images out of one of "
                "them, because what a network was trained on cannot test it."
            )
    return ids


def repeated(values: Sequence[_T]) -> _T | None:
    """Return the first value that is there more than once, if there is one.

    Example:
        >>> repeated("abcb"), repeated("abc")
        ('b', None)
    """
    counts = Counter(values)
    return next((value for value in values if counts[value] > 1), None)


def draw_order(ids: Sequence[str], seed: int) -> list[str]:
    """Return ids in an order that a seed draws; unlike in a shuffle, those that are there stay so when others come.

    Example:
        >>> draw_order(["a", "b", "c", "d"], seed=0), draw_order(["d", "b", "e", "c"], seed=0)
        (['b', 'a', 'c', 'd'], ['e', 'b', 'c', 'd'])
    """
    return sorted(ids, key=lambda each: hashlib.sha256(f"{seed} {each}".encode()).digest())

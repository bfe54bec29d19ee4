"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then rename it; an interruption leaves what was there before.

    The folder is made if need be.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "scores.json"
        >>> write_whole(path, lambda unfinished: unfinished.write_text("{}"))
        >>> path.read_text()
        '{}'
    """
    # The ending stays, because it tells some writers the format; with the dot in front no result has this name.
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(unfinished)
    os.replace(unfinished, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def remove_unfinished(*folders: Path) -> None:
    """Remove what writers that were killed have left in folders; nothing may be writing there."""
    for folder in folders:
        for path in folder.glob(".*.part*"):
            path.unlink()

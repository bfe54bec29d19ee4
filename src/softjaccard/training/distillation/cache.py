"""A teacher's logits on disk, so that a training with fixed images runs the teacher once for each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from softjaccard.errors import InputError
from softjaccard.files import write_text, write_whole

_AGAIN = "Delete the folder to have it made again, or choose another."


class TeacherCache:
    """A folder of a teacher's logits at its own resolution in half precision, a safetensors file for each image.

    Half precision keeps eleven binary digits of each logit, an error of at most 0.05 % of it. Files are whole or not
    there, so that an interrupted run goes on with those it has.

    Args:
        folder: Is made if need be.
        fingerprint: Plain data that say what the logits are of: the teacher, the size of the images, whatever else
            changes them. Kept in the folder's fingerprint.json.

    Raises:
        InputError: If the folder was made for another fingerprint, or holds something else.

    Example:
        >>> import tempfile
        >>> cache = TeacherCache(tempfile.mkdtemp(), {"teacher": "1f3a", "size": [360, 480]})
        >>> cache.get(["aachen/0001"]) is None
        True
        >>> cache.put("aachen/0001", torch.ones(11, 90, 120))
        >>> [logits.shape for logits in cache.get(["aachen/0001"])]
        [torch.Size([11, 90, 120])]
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, Any]) -> None:
        """See the class."""
        self.folder = Path(folder)
        path = self.folder / "fingerprint.json"
        text = json.dumps(fingerprint, indent=2, sort_keys=True)
        if path.is_file():
            _expect_fingerprint(path, json.loads(text))
        elif self.folder.exists() and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
            raise InputError(
                f"{self.folder} is no cache of a teacher's logits, but is not empty. Choose another folder."
            )
        else:
            write_text(path, text)

    def get(self, keys: Sequence[str]) -> list[Tensor] | None:
        """Return the logits (C, h, w) of images in half precision, or None if those of one of them are missing.

        Raises:
            InputError: If a file is damaged.
        """
        paths = [self._path(key) for key in keys]
        if not all(path.is_file() for path in paths):
            return None
        return [_read(path, key) for path, key in zip(paths, keys, strict=True)]

    def put(self, key: str, logits: Tensor) -> None:
        """Keep the logits (C, h, w) of an image.

        Raises:
            InputError: If one is not finite in half precision.
        """
        kept = logits.detach().to("cpu", torch.float16).contiguous()
        if not kept.isfinite().all():
            raise InputError(f"The teacher's logits of image {key} are not all finite numbers in half precision.")
        write_whole(self._path(key), lambda path: save_file({"logits": kept}, path, metadata={"key": key}))

    def _path(self, key: str) -> Path:
        """The file of an image; a hash, because an id may be no file's name, or too long for one."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def _expect_fingerprint(path: Path, expected: Any) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged. {_AGAIN}") from error
    if found != expected:
        raise InputError(
            f"{path.parent} holds logits made for {json.dumps(found)}, but {json.dumps(expected)} are needed. {_AGAIN}"
        )


def _read(path: Path, key: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"key": key}:
                raise InputError(f"{path} is not of image {key}. Delete it to have it made again.")
            logits: Tensor = file.get_tensor("logits")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}, the teacher's logits of image {key}, is damaged. Delete it to have it made again."
        ) from error
    return logits

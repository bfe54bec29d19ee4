"""What is kept of runs: a small result of each, from which tables are made, and a journal of its processes.

`results/ROW/SEED.json` says what was run, where, and what came out; `results/ROW/SEED.npz` holds the image x class
counts and what else is summed over images. The network, checkpoints and log are in `runs/ROW/SEED`, with
`journal.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softjaccard.errors import InputError, first_line
from softjaccard.evaluation.compare.grid import RunName
from softjaccard.evaluation.results import EvaluationResult
from softjaccard.files import write_text, write_whole

FORMAT = 1
"""Version of the files; a reader refuses others."""


@dataclass(frozen=True)
class Record:
    """What is kept of a run that has ended.

    Attributes:
        row: Name of its row.
        seed: Its seed.
        config: Every setting, resolved; folders inside the output folder are written relative to it.
        test: How it was tested: `checkpoint` and `split`.
        needs: Fingerprints of the runs it refers to, by name.
        processes: Its starts: `command`, `started`, `seconds`, `exit`, `commit`, `uncommitted_changes`.
        machine: Where it ran.
        versions: Of the software, by package.
        failed: Why it has no scores; None if it has.
        scores: Values by name, as fractions.
        classes: Names of the C classes.
        images: Names of the N images.
    """

    row: str
    seed: int
    config: Mapping[str, Any]
    test: Mapping[str, str]
    needs: Mapping[str, str]
    processes: tuple[Mapping[str, Any], ...]
    machine: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    failed: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()

    @property
    def run(self) -> RunName:
        """The run's name."""
        return RunName(self.row, self.seed)


@dataclass(frozen=True, eq=False)
class ImageTables:
    """What is known of each image: counts int64 (N, C, 3), and the `image_sums` of an `EvaluationResult`."""

    counts: Tensor
    sums: Mapping[str, Tensor]


@dataclass
class Journal:
    """The processes of a run and the runs it refers to; see `Record`."""

    needs: dict[str, str] = field(default_factory=dict)
    processes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def trained(self) -> bool:
        """Whether the training has come to its end."""
        return any(process["exit"] == 0 and process["command"][1] == "fit" for process in self.processes)

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """Read a run's journal; an empty one if there is none."""
        path = folder / "journal.json"
        return cls(**_read_json(path)) if path.is_file() else cls()

    def write(self, folder: Path) -> None:
        """Write it."""
        write_text(folder / "journal.json", json.dumps(asdict(self), indent=2) + "\n")


def save_record(output: Path, record: Record, result: EvaluationResult | None = None) -> None:
    """Keep a record and the tables of its test, in place of an earlier one."""
    path = _path(output, record.run)
    path.unlink(missing_ok=True)  # the tables below do not belong to it
    if result is not None:
        # Rounded, as the scores are kept themselves and the sums only say how far they could be off.
        sums = {name: rows.numpy().astype(np.float32) for name, rows in result.image_sums.items()}
        tables = {"counts": _narrow(result.counts.numpy()), **sums}
        # Not to a path, whose ending numpy would change.
        write_whole(path.with_suffix(".npz"), lambda unfinished: _save_tables(unfinished, tables))
    write_text(path, json.dumps({"format": FORMAT, **asdict(record)}, indent=1) + "\n")


def load_record(output: Path, run: RunName) -> Record | None:
    """Read the record of a run, if there is one.

    Raises:
        InputError: If it is damaged or of another version.
    """
    path = _path(output, run)
    if not path.is_file():
        return None
    content = _read_json(path)
    if content.pop("format", None) != FORMAT:
        raise InputError(f"{path} is no result that this version reads. Remove it, and it is made again.")
    try:
        for name in ("processes", "classes", "images"):
            content[name] = tuple(content[name])
        return Record(**content)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}. Remove it, and it is made again.") from error


def load_tables(output: Path, record: Record) -> ImageTables:
    """Read the tables of a run that has been tested.

    Raises:
        InputError: If they are missing or damaged.
    """
    path = _path(output, record.run).with_suffix(".npz")
    try:
        with np.load(path, allow_pickle=False) as tables:
            counts = torch.from_numpy(tables["counts"].astype(np.int64))
            names = {"calibration", *tables.files} - {"counts"}
            sums = {name: torch.from_numpy(tables[name]).double() for name in names}
            fits = all(len(rows) == len(counts) for rows in sums.values())
    except Exception as error:  # a damaged file can make numpy stumble over anything
        raise InputError(f"{path} is missing or damaged: {first_line(error)}. Remove {record.row}'s "
                         f"{record.seed}.json, and both are made again.") from error  # fmt: skip
    if counts.shape != (len(record.images), len(record.classes), 3) or not fits:
        raise InputError(f"{path} does not fit {record.seed}.json beside it. Remove both, and they are made again.")
    return ImageTables(counts, sums)


def _path(output: Path, run: RunName) -> Path:
    return output / "results" / run.row / f"{run.seed}.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}. Remove it, and it is made again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: expected a JSON object. Remove it, and it is made again.")
    return content


def _narrow(counts: NDArray[np.int64]) -> NDArray[Any]:
    """Return counts in the smallest type that holds them, which packs better."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _save_tables(path: Path, tables: Mapping[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **tables)  # type: ignore[arg-type]

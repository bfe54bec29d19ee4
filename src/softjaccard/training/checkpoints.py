"""Checkpoints: tensors and plain data, in files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.io import TorchCheckpointIO

import softjaccard
from softjaccard.data.transforms import mix_seed
from softjaccard.errors import InputError, first_line
from softjaccard.files import write_text, write_whole

MAX_SEED = 2**32 - 1
"""The largest seed that every generator takes."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it; loads tensors and plain data only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write the file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda unfinished: torch.save(checkpoint, unfinished))

    def load_checkpoint(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Any]:
        """Read the file onto the CPU."""
        return load_checkpoint(path)


class RunConfig(Callback):
    """Keeps the run's config: in a file, and in each checkpoint, from which alone the network can be built.

    A checkpoint also has the names and colours of the data set's classes, for use where the data are not.

    The file is written after the first step, so that a start that fails neither makes nor changes a run.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """See the class."""
        self._path, self._config, self._written = path, config, False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write the file."""
        if trainer.is_global_zero and not self._written:
            write_text(self._path, yaml.safe_dump(self._config, sort_keys=False))
            self._written = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the entry."""
        dataset = next(iter(getattr(getattr(trainer, "datamodule", None), "datasets", {}).values()), None)
        checkpoint["softjaccard"] = {
            "version": softjaccard.__version__,
            "config": self._config,
            "classes": [*getattr(dataset, "classes", ())],
            "colours": [[*colour] for colour in getattr(dataset, "colours", ())],
        }


class EpochSeeds(Callback):
    """Seeds dropout and the like anew in each epoch, so that a resumed run draws what an uninterrupted one draws."""

    def __init__(self, seed: int) -> None:
        """See the class."""
        self._seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed all generators by (seed, epoch, device), once the loaders, which draw too, have begun the epoch."""
        if batch_idx == 0:
            mixed = mix_seed(self._seed, trainer.current_epoch, trainer.global_rank)
            seed_everything(mixed % MAX_SEED, workers=True, verbose=False)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises:
        InputError: If the file is missing, damaged, no checkpoint of Lightning's, or holds more than tensors and plain
            data.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make torch stumble over anything
        raise InputError(
            f"{path} is damaged, or holds more than tensors and plain data: {first_line(error)}"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "epoch", "global_step"} <= checkpoint.keys():
        raise InputError(f"{path} is not a checkpoint of a training run.")
    return checkpoint

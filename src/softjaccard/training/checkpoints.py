"""Checkpoints: tensors and plain data, in files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

import softjaccard
from softjaccard.errors import InputError, first_line
from softjaccard.files import write_whole


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


class ConfigInCheckpoint(Callback):
    """Adds the run's config to each checkpoint, so that the network can be built from the checkpoint alone."""

    def __init__(self, config: dict[str, Any]) -> None:
        """See the class."""
        self._config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the entry."""
        checkpoint["softjaccard"] = {"version": softjaccard.__version__, "config": self._config}


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises:
        InputError: If the file is missing, damaged, or holds more than tensors and plain data.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make torch stumble over anything
        raise InputError(
            f"{path} is damaged, or holds more than tensors and plain data: {first_line(error)}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of a training run.")
    return checkpoint

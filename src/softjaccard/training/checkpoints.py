"""Checkpoints: tensors and plain data, in files that are whole or not there."""

from __future__ import annotations

import math
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.nn import Parameter

import softjaccard
from softjaccard.data.colours import class_colours
from softjaccard.data.module import SegmentationData
from softjaccard.errors import InputError, first_line
from softjaccard.files import write_text, write_whole
from softjaccard.training.reporting import CSVFile
from softjaccard.training.resumption import before_next_batch

_PLAIN = (Tensor, Parameter, str, bytes, bool, int, float, type(None))


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it; loads tensors and plain data only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write the file.

        Raises:
            InputError: If the checkpoint has more than tensors and plain data.
        """
        _refuse_objects(checkpoint, "")
        write_whole(Path(path), lambda unfinished: torch.save(checkpoint, unfinished))

    def load_checkpoint(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Any]:
        """Read the file onto the CPU."""
        return load_checkpoint(path)


class RunConfig(Callback):
    """Keeps the run's config: in a file, and in each checkpoint, from which alone the network can be built.

    A checkpoint also has the names and colours of the data set's classes, for use where the data are not. Where only a
    part of the training images has labels, the file labelled.txt beside the config has their ids.

    The files are written after the first step, so that a start that fails neither makes nor changes a run.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """See the class."""
        self._path, self._config, self._written = path, config, False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write the files."""
        if trainer.is_global_zero and not self._written and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            data = getattr(trainer, "datamodule", None)
            labelled = data.labelled_ids() if isinstance(data, SegmentationData) else None
            if labelled is not None:
                write_text(self._path.with_name("labelled.txt"), "".join(f"{each}\n" for each in labelled))
            write_text(self._path, yaml.safe_dump(self._config, sort_keys=False))
            self._written = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the entry."""
        dataset = next(iter(getattr(getattr(trainer, "datamodule", None), "datasets", {}).values()), None)
        checkpoint["softjaccard"] = {
            "version": softjaccard.__version__,
            "config": self._config,
            "classes": [*getattr(dataset, "classes", ())],
            "colours": [[*colour] for colour in class_colours(dataset)] if dataset is not None else [],
        }


class RunCheckpoints(Checkpoint):
    """Writes best.ckpt after a validation that beats all before; last.ckpt after each epoch and every so many steps.

    Within an epoch, last.ckpt is written before the next batch. Then the step is over with all that belongs to it: a
    validation, the rows in the logs, and the hooks of the module, which Lightning calls after those of callbacks. Where
    training stops within an epoch, last.ckpt is as if it were written there, too, although Lightning calls the hooks of
    the epoch's end first. Between the batches of one step it stays as it was, because checkpoints hold no gradients.

    Args:
        folder: Of the checkpoints.
        monitor: The value of the validation by which the best is chosen; more is better.
        metrics: Written before each last.ckpt, so that a run that is killed has the rows of all steps before it.
        every: Steps between two last.ckpt; None for the ends of epochs only.

    Attributes:
        best: The best value so far.
        step: That of last.ckpt, 0 if there is none.
    """

    def __init__(self, folder: Path, monitor: str, metrics: CSVFile, every: int | None = None) -> None:
        """See the class."""
        self._folder, self._monitor, self._metrics, self._every = folder, monitor, metrics, every
        self.best: float | None = None
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept in checkpoints."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best = state_dict["best"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the step of the checkpoint that the run goes on from."""
        self.step = checkpoint["global_step"]

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Write last.ckpt if it is time; once, where the batches of several iterations make one step."""
        step = trainer.global_step
        if self._every is not None and step % self._every == 0 and step != self.step:
            self._write_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write last.ckpt, of the epoch's end or of a stop within it."""
        if trainer.is_last_batch:
            self._write_last(trainer)
        elif (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            with before_next_batch(trainer):
                self._write_last(trainer)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Write best.ckpt if it is one.

        Raises:
            InputError: If the module has not logged the value.
        """
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self._monitor not in trainer.callback_metrics:
            raise InputError(
                f"model: the validation logged no {self._monitor}, by which the best checkpoint is chosen, but "
                f"{', '.join(trainer.callback_metrics) or 'nothing'}."
            )
        value = float(trainer.callback_metrics[self._monitor])
        if self.best is None or math.isnan(self.best) or value > self.best:
            self.best = value
            trainer.save_checkpoint(self._folder / "best.ckpt")

    def _write_last(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._metrics.write()
        trainer.save_checkpoint(self._folder / "last.ckpt")
        self.step = trainer.global_step


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
        refused = re.search(r"GLOBAL (\S+)", str(error))
        problem = f"holds {refused[1]}" if refused else f"is damaged ({first_line(error)})"
        raise InputError(f"{path} {problem}; expected a checkpoint of tensors and plain data.") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "epoch", "global_step"} <= checkpoint.keys():
        raise InputError(f"{path} is not a checkpoint of a training run.")
    return checkpoint


def _refuse_objects(value: Any, name: str) -> None:
    """Check for what `weights_only=True` would not load, and for other classes, NumPy's numbers among them."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, part in value.items():
            _refuse_objects(key, f"{name}[{key!r}] (the key)")
            _refuse_objects(part, f"{name}[{key!r}]")
    elif kind in (list, tuple):
        for position, part in enumerate(value):
            _refuse_objects(part, f"{name}[{position}]")
    elif kind not in _PLAIN:
        raise InputError(
            f"The checkpoint is not written: checkpoint{name} is of the class {kind.__module__}.{kind.__qualname__}, "
            "but checkpoints hold tensors and plain data only (numbers, text, None; lists, tuples and dictionaries of "
            "these). Let the module or callback that adds it (on_save_checkpoint, state_dict or save_hyperparameters) "
            "turn it into these."
        )

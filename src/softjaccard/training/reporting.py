"""What a run shows and writes while it trains."""

from __future__ import annotations

import csv
import io
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from softjaccard.files import write_text

_SHOWN = {
    "train/loss": "loss",
    "train/confident": "confident",
    "train/mIoU_D": "mIoU",
    "val/mIoU_D": "val mIoU",
}


def progress(enabled: bool | None) -> list[Callback]:
    """Return what shows the progress: a bar in a terminal, lines in a log, or nothing."""
    if enabled is False:
        return []
    return [_Bar(leave=True) if sys.stdout.isatty() else _Lines()]


def how_far(trainer: Trainer) -> str:
    """Say how far a training that has ended came: in epochs, or else in steps and within which epoch."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    if trainer.is_last_batch and epochs.processed == epochs.started:
        return f"{epochs.started} epochs"
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return f"{trainer.global_step} steps, as far as batch {batches} of epoch {epochs.started}"


class _Bar(TQDMProgressBar):
    """Shows the loss, the running mIoU of the epoch's training batches, and the last validation's mIoU."""

    def on_train_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Begin the bar of an epoch that is resumed in its midst, too."""
        super().on_train_start(trainer, *arguments)
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if epochs.started > epochs.processed:
            self.on_train_epoch_start(trainer, *arguments)

    def on_train_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Count epochs from one, and say how many there will be."""
        super().on_train_epoch_start(trainer, *arguments)
        self.train_progress_bar.set_description(_epoch(trainer))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Choose and name the values."""
        return _shown(trainer)


class _Lines(ProgressBar):
    """Says the same in one line after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def disable(self) -> None:
        """Be silent; Lightning asks all devices but the first to."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line."""
        if self._enabled:
            values = ", ".join(f"{name} {value}" for name, value in _shown(trainer).items())
            sys.stdout.write(f"{_epoch(trainer)}: {values}\n")
            sys.stdout.flush()


def _epoch(trainer: Trainer) -> str:
    of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"Epoch {trainer.current_epoch + 1}{of}"


def _shown(trainer: Trainer) -> dict[str, str]:
    values = trainer.progress_bar_metrics
    return {short: f"{values[name]:.3f}" for name, short in _SHOWN.items() if name in values}


class CSVFile(Logger):
    """One CSV file with a row for each logged step, which a resumed run goes on with.

    It is written before each last.ckpt and at the end. Lightning's own logger begins each start with an empty file.

    Args:
        path: The file.
        step: Number of steps that the run has behind it; rows of later ones are dropped, they are made again.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        """See the class."""
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] = {}
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                rows = {int(row["step"]): dict(row) for row in csv.DictReader(file)}
            self._rows = {number: row for number, row in rows.items() if number < step}

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """Empty: there is one file."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to a step's row."""
        self._rows.setdefault(step or 0, {}).update(metrics)

    @rank_zero_only
    def write(self) -> None:
        """Write the file. Not under Lightning's name `save`, which it calls after each row."""
        if not self._rows:
            return
        columns = sorted({name for row in self._rows.values() for name in row} - {"step", "epoch"})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["step", "epoch", *columns])
        writer.writeheader()
        writer.writerows({**row, "step": step} for step, row in sorted(self._rows.items()))
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file a last time."""
        self.write()

"""What a run shows and writes while it trains."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from softjaccard.files import write_text

_SHOWN = {"train/loss": "loss", "train/mIoU_D": "mIoU", "val/mIoU_D": "val mIoU"}


class ProgressBar(TQDMProgressBar):
    """Shows the loss, the running mIoU of the epoch's training batches, and the last validation's mIoU."""

    def __init__(self) -> None:
        """See the class."""
        super().__init__(leave=True)

    def on_train_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Count epochs from one, and say how many there will be."""
        super().on_train_epoch_start(trainer, *arguments)
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}{of}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Choose and name the values."""
        values = trainer.progress_bar_metrics
        return {short: f"{values[name]:.3f}" for name, short in _SHOWN.items() if name in values}


class CSVFile(Logger):
    """One CSV file with a row for each logged step, which a resumed run goes on with.

    Lightning's own logger begins each start with an empty file.
    """

    def __init__(self, path: Path) -> None:
        """See the class."""
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] = {}
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self._rows = {int(row["step"]): dict(row) for row in csv.DictReader(file)}

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
    def save(self) -> None:
        """Write the file."""
        if not self._rows:
            return
        columns = sorted({name for row in self._rows.values() for name in row} - {"step", "epoch"})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["step", "epoch", *columns])
        writer.writeheader()
        writer.writerows({**row, "step": step} for step, row in sorted(self._rows.items()))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file a last time."""
        self.save()

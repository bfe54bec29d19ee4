"""What `softjaccard test` keeps besides the scores it prints: tables of counts, and pictures of the worst images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import ImageColor
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from softjaccard.data.module import Batch, SegmentationData, SegmentationDataset
from softjaccard.data.transforms import IGNORE_INDEX
from softjaccard.evaluation.colours import distinct_colours
from softjaccard.evaluation.figures import PALETTE
from softjaccard.evaluation.results import EvaluationResult, Picture, image_scores
from softjaccard.metrics import (
    CalibrationSums,
    calibration_scores,
    calibration_sums,
    fine_grained_iou,
    image_counts,
)
from softjaccard.metrics.confidence import FINE_BINS

_WORST = 8
"""Images with pictures, for each score."""
_BINS = 10


class EvaluationRecorder(Callback):
    """Keeps what a test finds.

    Of modules whose `test_step` and `predict_step` return logits of the label's size, with the data of a
    `SegmentationData`; of other tests nothing is kept. The tables of all devices are gathered at the end of the test,
    and the worst images then go through the network once more, on the first device, for their pictures.
    """

    def __init__(self) -> None:
        """See the class."""
        self._tables: _Tables | None = None
        self._found: dict[str, Any] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(outputs, Tensor) or not isinstance(data, SegmentationData):
            return
        if self._tables is None:
            self._tables = _Tables(outputs.shape[1]).to(outputs.device)
        self._tables.update(outputs, batch["label"], batch["index"])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the tables, and draw the worst images."""
        if self._tables is None:
            return
        tables = self._tables.compute()
        if not trainer.is_global_zero:
            return
        data = cast(SegmentationData, trainer.datamodule)  # type: ignore[attr-defined]
        dataset = data.datasets["test"]
        rows = tables.pop("index").tolist()
        names = getattr(dataset, "ids", [str(index) for index in range(len(dataset))])
        worst = {name: _lowest(values) for name, values in image_scores(tables["counts"]).items()}
        self._found = {
            "split": "test",
            "classes": tuple(dataset.classes),
            "colours": class_colours(dataset),
            "images": tuple(names[index] for index in rows),
            "worst": worst,
            **tables,
        }
        shown = sorted({row for some in worst.values() for row in some})
        self._found["pictures"] = {row: _picture(trainer, pl_module, data, rows[row]) for row in shown}

    def save(self, folder: Path, about: Mapping[str, Any]) -> bool:
        """Write what was found, on the first device; on the others do nothing.

        Args:
            folder: See `EvaluationResult.save`.
            about: The fields `checkpoint`, `epoch`, `step`, `seed` and `versions` of the result; and `scores`, to which
                those that follow from the tables are added.

        Returns:
            Whether a result was written.
        """
        if not self._found:
            return False
        scores = {**self._found["scores"], **about["scores"]}
        EvaluationResult(**{**self._found, **about, "scores": scores}).save(folder)
        return True


def _lowest(values: Tensor) -> tuple[int, ...]:
    """Return the rows of the lowest values, lowest first; NaN is no value."""
    order = [row for row in values.argsort(stable=True).tolist() if not values[row].isnan()]
    return tuple(order[:_WORST])


def _picture(trainer: Trainer, module: LightningModule, data: SegmentationData, index: int) -> Picture:
    """Draw one image of the test split."""
    batch = trainer.strategy.batch_to_device(data.test_batch([index]), module.device)
    with trainer.strategy.precision_plugin.test_step_context():
        logits: Tensor = module.predict_step(batch, 0)
    height, width = data.datasets["test"][index]["label"].shape  # without the padding of the batch
    image, label, prediction = batch["image"][0], batch["label"][0], logits[0].argmax(0)
    image, label, prediction = (part[..., :height, :width] for part in (image, label, prediction))
    return Picture.encode(image, label, prediction, logits.shape[1])


def class_colours(dataset: SegmentationDataset) -> tuple[tuple[int, int, int], ...]:
    """Return a data set's own colours of its classes, or else colours that can be told apart.

    Example:
        >>> from softjaccard.data.scenes import Scenes
        >>> class_colours(Scenes)[:2]
        ((227, 227, 227), (230, 159, 0))
    """
    own = getattr(dataset, "colours", None)
    if own is not None:
        return tuple((int(r), int(g), int(b)) for r, g, b in own)
    if dataset.num_classes <= len(PALETTE):
        return tuple(cast(tuple[int, int, int], ImageColor.getrgb(colour)) for colour in PALETTE[: dataset.num_classes])
    # The first of these, black, is for pixels without a label.
    return tuple((r, g, b) for r, g, b in distinct_colours(dataset.num_classes + 1)[1:].tolist())


class _Tables(Metric):
    """Counts, confusion and calibration of every image, gathered over devices."""

    full_state_update = False
    index: list[Tensor]
    counts: list[Tensor]
    calibration: list[Tensor]
    cells: Tensor
    losses: Tensor
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ("index", "counts", "calibration"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        sums = {
            "cells": torch.zeros(4, num_classes + 1, _BINS * FINE_BINS, dtype=torch.float64),
            "losses": torch.zeros(2, dtype=torch.float64),
            "confusion": torch.zeros(num_classes**2, dtype=torch.int64),
        }
        for name, start in sums.items():
            self.add_state(name, default=start, dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor, index: Tensor) -> None:
        """Add a batch."""
        prediction = logits.argmax(1)
        self.index.append(index)
        self.counts.append(image_counts(prediction, label, self.num_classes))
        sums = calibration_sums(logits, label, _BINS, from_logits=True, per_image=True).over(1)
        self.calibration.append(_in_bins(sums.cells)[:, 0])
        self.cells += sums.cells.sum(0)
        self.losses += sums.losses.sum(0)
        pairs = (label * self.num_classes + prediction)[label != IGNORE_INDEX]
        self.confusion += torch.bincount(pairs, minlength=self.num_classes**2)

    def compute(self) -> dict[str, Any]:
        """Return the tables on the CPU, in the order of the images, and the scores that follow from them."""
        order = dim_zero_cat(self.index).argsort()
        by_image = {name: dim_zero_cat(getattr(self, name))[order].cpu() for name in ("index", "counts", "calibration")}
        scores = {
            **fine_grained_iou(by_image["counts"]),
            **calibration_scores(CalibrationSums(self.cells, self.losses)),
        }
        return {
            **by_image,
            "confusion": self.confusion.reshape(self.num_classes, -1).cpu(),
            "class_calibration": _in_bins(self.cells)[1:].cpu(),
            "scores": {name: score.item() for name, score in scores.items() if score.ndim == 0},
        }


def _in_bins(cells: Tensor) -> Tensor:
    """Pixels, confidence and hits (..., C + 1, 3, bins) from fine bins."""
    bins: Tensor = cells[..., :3, :, :].reshape(*cells.shape[:-3], 3, -1, _BINS, FINE_BINS).sum(-1)
    return bins.transpose(-3, -2)

"""Lightning modules that put the images of a split through a network, and keep what scores and reports need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import pad
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from softjaccard.data.colours import class_colours
from softjaccard.data.module import Batch, SegmentationData, Split
from softjaccard.data.transforms import IGNORE_INDEX
from softjaccard.errors import InputError, users_error
from softjaccard.evaluation.decoding import decode
from softjaccard.evaluation.inference import InferenceSettings, predict_logits
from softjaccard.evaluation.results import Picture, image_scores
from softjaccard.evaluation.temperature import Temperature, fit_temperature
from softjaccard.labels import LabelLike, RaterLabel
from softjaccard.metrics import BoundaryIoU, CalibrationError, CalibrationSums, FineGrainedIoU, SoftScores
from softjaccard.metrics.calibration import in_bins

_BINS = 10
_BOUNDARY_WIDTH = 3
_WORST = 8
"""Images with pictures, for each score."""
_KEPT_LOGITS = 2**27
"""A temperature is fitted to so many logits at most: with a copy, 1 GiB."""
_OF_IMAGES = ("ids", "calibration", "losses", "class_gaps")


class _Inference(LightningModule):
    """Makes the logits of a split's images."""

    def __init__(self, network: nn.Module, data: SegmentationData, split: Split, settings: InferenceSettings) -> None:
        super().__init__()
        self.network, self.data, self.split, self.settings = network, data, split, settings
        self.dataset = data.datasets[split]
        self.num_classes = self.dataset.num_classes

    def logits(self, batch: Batch) -> Tensor:
        """Return logits (B, C, H, W), zero in the padding: the network sees each image as `predict` shows it."""
        images, sizes = batch["image"], batch["size"].tolist()
        if all(size == sizes[0] for size in sizes):
            logits = self._whole(images, sizes[0])
        else:
            logits = torch.cat([self._whole(image[None], size) for image, size in zip(images, sizes, strict=True)])
        if logits.shape[1] != self.num_classes:
            raise InputError(
                f"The network has {logits.shape[1]} classes, but the {self.split} data have {self.num_classes}."
            )
        return logits

    def _whole(self, images: Tensor, size: Sequence[int]) -> Tensor:
        (images_only,) = _cut(size, images)
        logits = predict_logits(self.network, images_only, self.settings)
        return pad(logits, (0, images.shape[3] - size[1], 0, images.shape[2] - size[0]))


class TemperatureFit(_Inference):
    """Fits a temperature to the images of a split; beyond 2^27 logits, to evenly spread pixels of each."""

    def __init__(self, *arguments: Any) -> None:
        """See `_Inference`."""
        super().__init__(*arguments)
        self.pixels = _Pixels()
        self.fitted: Temperature | None = None

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Keep a batch."""
        logits = self.logits(batch)
        step = max(1, math.ceil(math.sqrt(logits[0].numel() * len(self.dataset) / _KEPT_LOGITS)))
        spread = (..., slice(None, None, step), slice(None, None, step))
        self.pixels.update(logits[spread], batch["label"][spread])

    def on_validation_epoch_end(self) -> None:
        """Fit the temperature, on each device to the pixels of all."""
        with self.pixels.sync_context():
            logits, label = dim_zero_cat(self.pixels.logits), dim_zero_cat(self.pixels.label)
        self.pixels.reset()
        self.fitted = fit_temperature([(logits.T.unsqueeze(0), label.unsqueeze(0))])


class _Pixels(Metric):
    """Logits (n, C) and label (n,) of pixels that have one, gathered over devices."""

    logits: list[Tensor]
    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("logits", "label"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add a batch."""
        kept = label != IGNORE_INDEX
        self.logits.append(logits.movedim(1, -1)[kept])
        self.label.append(label[kept])

    def compute(self) -> None:
        """Nothing: what is kept is read inside `sync_context`."""


class Scorer(_Inference):
    """Scores the images of a split; the tables of all devices are gathered at the end.

    Where images have the votes of several annotators, probabilities are also scored against their distribution; all
    else is about the label, which is that of most votes.

    The worst images then go through the network once more, on the first device, for their pictures.

    Args:
        network: With a method `predict`.
        data: Has set up the split.
        split: Which one.
        settings: How logits are made.
        decodings: How they become classes; each is scored.
        temperature: Logits are divided by it first.
        loss: From logits and labels to a scalar, if there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        data: SegmentationData,
        split: Split,
        settings: InferenceSettings,
        *,
        decodings: Sequence[str],
        temperature: float,
        loss: nn.Module | None,
    ) -> None:
        """See the class."""
        super().__init__(network, data, split, settings)
        self.temperature, self.loss = temperature, loss
        self.mean_loss = MeanMetric()
        self.calibration = _Calibration(self.num_classes, per_image=True, boundary_kernel_size=3)
        self.unscaled = CalibrationError(self.num_classes, _BINS, from_logits=True)
        self.has_votes = False
        self.votes, self.unscaled_votes = _VoteScores(self.num_classes), _VoteScores(self.num_classes)
        self.decoded = {name: _ClassTables(self.num_classes) for name in decodings}
        for name, tables in self.decoded.items():
            self.add_module(name, tables)  # so that they go to the device
        self.found: dict[str, dict[str, Any]] = {}
        """By decoding, the fields of an `EvaluationResult` that follow from data and network."""

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch."""
        logits = self.logits(batch)
        if self.loss is not None:
            with users_error("model.loss"):
                self.mean_loss.update(self.loss(logits, batch["label"]), len(logits))
        # The same for all images, so that every device takes part in gathering these scores.
        self.has_votes = "votes" in batch
        parts = [batch[name] for name in ("label", "index", "votes") if name in batch]
        with users_error(self.split):
            for part in zip(batch["size"].tolist(), logits, *parts, strict=True):
                self._add_image(*part)

    def on_test_epoch_end(self) -> None:
        """Gather scores and tables, and draw the worst images."""
        scores = self.calibration.compute()
        if self.has_votes:
            scores |= self.votes.scores(self.dataset.classes)
        if self.temperature != 1:
            unscaled = self.unscaled.compute()
            if self.has_votes:
                unscaled |= self.unscaled_votes.scores(self.dataset.classes)
            scores |= {f"{name}_unscaled": score for name, score in unscaled.items()}
        if self.loss is not None:
            scores["loss"] = self.mean_loss.compute()
        shared = self.calibration.tables()
        ids = shared.pop("ids").tolist()
        sums = {name: shared.pop(name) for name in ("losses", "class_gaps")}
        if self.has_votes:
            sums |= {f"{name}_votes": rows for name, rows in self.votes.sums().items()}
        names = getattr(self.dataset, "ids", [str(index) for index in range(len(self.dataset))])
        for decoding, own in self.decoded.items():
            tables = own.tables()
            found = own.scores(self.dataset.classes) | scores
            self.found[decoding] = {
                "split": self.split,
                "classes": tuple(self.dataset.classes),
                "colours": class_colours(self.dataset),
                "images": tuple(names[index] for index in ids),
                "scores": {name: score.item() for name, score in found.items() if score.ndim == 0},
                "worst": {name: _lowest(values) for name, values in image_scores(tables["counts"]).items()},
                "pictures": {},
                "sums": sums,
                **tables,
                **shared,
            }
        if self.trainer.is_global_zero:
            self._add_pictures(ids)

    # For the split "val", which has Lightning's other evaluation loop.
    validation_step = test_step
    on_validation_epoch_end = on_test_epoch_end

    def _add_image(
        self, size: Sequence[int], logits: Tensor, label: Tensor, index: Tensor, votes: Tensor | None = None
    ) -> None:
        """Add an image without its padding, which would have a say in decodings and in where boundaries are."""
        ids = index[None]
        logits, label = _cut(size, logits[None], label[None])
        scaled = logits if self.temperature == 1 else logits / self.temperature
        if votes is not None:
            (votes,) = _cut(size, votes[None])
            self.votes.update(scaled, votes, ids)
        if self.temperature != 1:
            self.unscaled.update(logits, label)
            if votes is not None:
                self.unscaled_votes.update(logits, votes, ids)
        self.calibration.update(scaled, label, ids=ids)
        for decoding, tables in self.decoded.items():
            tables.update(decode(scaled, decoding), label, ids)

    def _add_pictures(self, ids: Sequence[int]) -> None:
        """Draw the worst images; the id of a row is its place in the split."""
        shown = {decoding: set().union(*found["worst"].values()) for decoding, found in self.found.items()}
        for row in sorted(set().union(*shown.values())):
            batch = self.data.evaluation_batch(self.split, [ids[row]])
            precision = self.trainer.strategy.precision_plugin
            batch = precision.convert_input(self.trainer.strategy.batch_to_device(batch, self.device))
            with precision.test_step_context():
                logits = self.logits(batch) / self.temperature
            logits, image, label = _cut(batch["size"][0].tolist(), logits, batch["image"], batch["label"])
            for decoding, found in self.found.items():
                if row in shown[decoding]:
                    classes = decode(logits, decoding)
                    found["pictures"][row] = Picture.encode(image[0], label[0], classes[0], self.num_classes)


class _ClassTables(nn.Module):
    """What follows from the classes that one decoding gives."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.iou = FineGrainedIoU(num_classes)
        self.boundary = BoundaryIoU(num_classes, _BOUNDARY_WIDTH)
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX)

    def update(self, classes: Tensor, label: Tensor, ids: Tensor) -> None:
        """Add a batch."""
        self.iou.update(classes, label, image_ids=ids)
        self.boundary.update(classes, label, image_ids=ids)
        self.confusion.update(classes, label)

    def scores(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the scores of all devices' images, with the IoU of each class that is labelled or predicted."""
        iou = self.iou.compute()
        by_class = zip(names, iou["IoU_D"], iou["active_D"], strict=True)
        return {
            **iou,
            **self.boundary.compute(),
            **{f"IoU_D/{name}": score for name, score, active in by_class if active},
        }

    def tables(self) -> dict[str, Tensor]:
        """Return `counts` and `confusion` of an `EvaluationResult`, of all devices' images by their id."""
        with self.iou.sync_context():
            counts, _ = self.iou.table()
        return {"counts": counts.cpu(), "confusion": self.confusion.compute().cpu()}


class _VoteScores(nn.Module):
    """Scores of probabilities against the distribution of votes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.soft = SoftScores(num_classes, from_logits=True)
        self.calibration = _Calibration(num_classes)

    def update(self, logits: Tensor, votes: Tensor, ids: Tensor) -> None:
        """Add a batch."""
        label = RaterLabel(votes)
        self.soft.update(logits, label, image_ids=ids)
        self.calibration.update(logits, label, ids=ids)

    def scores(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the scores of all devices' images, with those of each class that is voted for or predicted."""
        soft = self.soft.compute()
        scores = {f"{name}_votes": score for name, score in (soft | self.calibration.compute()).items()}
        for score in ("SoftIoU_D", "SoftDice_D"):
            by_class = zip(names, soft[score], soft["active_D"], strict=True)
            scores |= {f"{score}_votes/{name}": value for name, value, active in by_class if active}
        return scores

    def sums(self) -> dict[str, Tensor]:
        """Return the `sums` of an `EvaluationResult`, of all devices' images by their id."""
        tables = self.calibration.tables()
        with self.soft.sync_context():
            statistics, _ = self.soft.statistics()
        return {
            **{name: tables[name] for name in ("calibration", "losses", "class_gaps")},
            **{name: rows.cpu() for name, rows in statistics.fields().items()},
        }


class _Calibration(CalibrationError):  # noqa: N818 (no exception)
    """Keeps, besides all scores, each image's id and sums, gathered over devices; images are added one at a time."""

    image_ids: list[Tensor]
    image_calibration: list[Tensor]
    image_losses: list[Tensor]
    image_class_gaps: list[Tensor]

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(num_classes, _BINS, from_logits=True, **options)
        for name in _OF_IMAGES:
            self.add_state(f"image_{name}", default=[], dist_reduce_fx="cat")

    def update(
        self, probabilities: Tensor, label: LabelLike, mask: Tensor | None = None, *, ids: Tensor | None = None
    ) -> None:
        """Add an image with this id."""
        super().update(probabilities, label, mask)
        if ids is not None:
            self.image_ids.append(ids)

    def tables(self) -> dict[str, Tensor]:
        """Return the images' ids, which rise, and what an `EvaluationResult` keeps of them by these names."""
        with self.sync_context():
            rows = {name: dim_zero_cat(getattr(self, f"image_{name}")).cpu() for name in _OF_IMAGES}
            by_class = self.reliability()[:, 1:].movedim(0, 1).cpu()
        order = rows["ids"].argsort()
        return {"class_calibration": by_class, **{name: each[order] for name, each in rows.items()}}

    def _add(self, sums: CalibrationSums) -> None:
        super()._add(sums)
        image = sums.over(1)
        self.image_calibration.append(in_bins(image.cells[:, :3, 0]))
        self.image_losses.append(image.losses)
        self.image_class_gaps.append(in_bins(image.cells[:, 1, 1:] - image.cells[:, 2, 1:]))


def _cut(size: Sequence[int], *padded: Tensor) -> list[Tensor]:
    """Return an image's part of tensors that are padded at the right and the bottom."""
    return [tensor[..., : size[0], : size[1]] for tensor in padded]


def _lowest(values: Tensor) -> tuple[int, ...]:
    """Return the rows of the lowest values, lowest first; NaN is no value."""
    order = [row for row in values.argsort(stable=True).tolist() if not values[row].isnan()]
    return tuple(order[:_WORST])

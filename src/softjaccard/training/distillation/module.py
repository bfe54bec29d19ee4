"""Training with a teacher."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softjaccard.data.module import Batch
from softjaccard.data.transforms import IGNORE_INDEX
from softjaccard.errors import InputError
from softjaccard.models import NetworkOutput
from softjaccard.training.distillation.base import DistillationTerm
from softjaccard.training.distillation.cache import TeacherCache
from softjaccard.training.distillation.jml import JMLDistillation
from softjaccard.training.objectives import ready_for_training
from softjaccard.training.supervised import SupervisedSegmentation
from softjaccard.training.teacher import Network, Teacher, load_teacher


class Distillation(SupervisedSegmentation):
    """Trains a student on labels and on what a teacher makes of the same crops.

    The teacher is in evaluation mode, gets no gradient, and is no part of the run's checkpoints.

    Args:
        teacher: The folder of a run, whose best checkpoint is taken, or the file of a checkpoint; in Python also any
            callable from images (B, 3, H, W) in [0, 1] to logits (B, C, h, w) or a `NetworkOutput`.
        method: How the student is drawn to the teacher, and how much less the hard label counts then.
        teacher_cache: A folder to keep the teacher's logits in, so that it runs once for each image; for data that are
            not augmented (data.crop null, data.flip 0, no scaling, no photometric changes) and methods that need
            logits of the main head only.
        settings: As in `SupervisedSegmentation`.

    Raises:
        InputError: If the teacher is missing or has other classes, or a cache cannot be used.
    """

    def __init__(
        self,
        teacher: str | nn.Module | Network,
        method: DistillationTerm | None = None,
        *,
        teacher_cache: str | None = None,
        **settings: Any,
    ) -> None:
        """See the class."""
        super().__init__(**settings)
        self.method: DistillationTerm = ready_for_training(method or JMLDistillation())
        self.teacher_cache = teacher_cache
        # Not registered as a part of this module: its weights do not belong into this run's checkpoints.
        self._source = (teacher,)
        self._teacher: Teacher | None = None
        self._cache: TeacherCache | None = None

    def setup(self, stage: str) -> None:
        """Check the data, and open the teacher for a training."""
        super().setup(stage)
        if stage != "fit":
            return
        (source,) = self._source
        checkpoint = None
        if isinstance(source, str):
            data = getattr(self.trainer, "datamodule", None)
            images = getattr(data, "datasets", {}).get("train")
            network, checkpoint = load_teacher(source, getattr(images, "classes", ()), getattr(data, "scale", 1.0))
            if not self._uses_auxiliary:
                network.auxiliary = None  # would run for nothing
            source = network
        self._teacher = Teacher(source)
        if self.teacher_cache:
            self._cache = self._open_cache(checkpoint, self.teacher_cache)

    def on_fit_start(self) -> None:
        """Move the teacher to where the student is."""
        assert self._teacher is not None
        self._teacher.to(next(self.network.parameters()))

    def training_loss(self, output: NetworkOutput, batch: Batch) -> Tensor:
        """Return the loss on the label and the distance to the teacher."""
        hard = super().training_loss(output, batch)
        counted = batch["label"] != IGNORE_INDEX
        distance: Tensor = self.method(output, self._ask_teacher(batch), counted)
        self.log("train/distillation", distance.detach())
        return self.method.label_weight * hard + distance

    def _ask_teacher(self, batch: Batch) -> NetworkOutput:
        assert self._teacher is not None
        if self._cache is None:
            return self._teacher(batch["image"])
        # By their pixels, because a name says neither which data set it is of nor how the image was padded.
        keys = [
            hashlib.sha256(f"{image.shape}".encode() + image.numpy().tobytes()).hexdigest()
            for image in batch["image"].cpu()
        ]
        kept = self._cache.get(keys)
        if kept is None:
            for key, logits in zip(keys, self._teacher(batch["image"]).logits, strict=True):
                self._cache.put(key, logits)
            kept = self._cache.get(keys)  # read, so that the first epoch has the rounded logits of the others
        assert kept is not None
        return NetworkOutput(torch.stack(kept).to(batch["image"]), None, None)

    @property
    def _uses_auxiliary(self) -> bool:
        """Whether the teacher's auxiliary head is looked at, if it has one."""
        return self.method.needs_auxiliary and self.network.auxiliary is not None

    def _open_cache(self, checkpoint: Path | None, folder: str) -> TeacherCache:
        data: Any = getattr(self.trainer, "datamodule", None)
        if checkpoint is None:
            raise InputError("model.teacher_cache: only the logits of a run or a checkpoint can be kept.")
        if self.method.needs_features or self._uses_auxiliary:
            raise InputError(
                f"model.teacher_cache: {type(self.method).__name__} needs more of the teacher than the logits of its "
                "main head, which are all that is kept. Use no cache, another method, or no model.auxiliary."
            )
        if data is None or not data.training_transform().deterministic:
            raise InputError(
                "model.teacher_cache: the training images are augmented, so that the teacher's logits differ in each "
                "epoch. Set data.crop null, data.flip 0 and no other augmentation, or use no cache."
            )
        return TeacherCache(folder, {"teacher": hashlib.sha256(checkpoint.read_bytes()).hexdigest()})

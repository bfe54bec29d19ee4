"""Training on labelled images: a network, a loss, a label, and the scores to watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric

from softjaccard.data.module import Batch
from softjaccard.errors import InputError, users_error
from softjaccard.losses import CompoundLoss, JaccardLoss
from softjaccard.losses.base import StatisticsLoss
from softjaccard.metrics import CalibrationError, FineGrainedIoU, image_counts, table_score
from softjaccard.models import AuxiliarySettings, NetworkOutput, SegmentationNetwork, create_model
from softjaccard.statistics import class_map
from softjaccard.training.objectives import Objectives, loss_at_size, supervised_objectives
from softjaccard.training.optimisation import OptimiserSettings, build_optimiser, build_schedule
from softjaccard.training.targets import HardLabel, Target, TrainingLabel


class SupervisedSegmentation(LightningModule):
    """Trains a network on labelled images and logs mIoU (D, I and C) and the expected calibration error.

    Scores and `val/loss` are against hard labels, whatever the network is trained on. `train/mIoU_D` is that of the
    epoch's training images so far, with the weights as they were; with more than one device, of the first one's images.

    Args:
        loss: A module from logits (B, C, H, W) and a label to a scalar; null for 0.75 Jaccard + 0.25 cross-entropy.
            Ignored pixels are -100 in every batch, whatever id the files have for them, so its ignore_index stays at
            -100. Softjaccard's losses interpolate the network's logits to the labels' size themselves and, with several
            devices, are those of the joined batch; for other losses logits are interpolated before.
        num_classes: C, at least 2.
        label: What the network is trained on: HardLabel, SmoothLabel, and of several annotators AveragedVotes or
            RandomAnnotator.
        auxiliary: Train a second head on the encoder's second-last stage, too, with a part of the cross-entropy.
        architecture: A name of segmentation_models.pytorch, such as deeplabv3plus or unet.
        encoder: A name of segmentation_models.pytorch, or tu- and a name of timm.
        encoder_weights: None for random weights; imagenet to download published ones; or the path of a .pth or
            .safetensors file with the encoder's weights.
        mean: Of the images' channels in [0, 1], as the encoder expects it; null for the one its weights were made with.
        std: Likewise.
        channels_last: Keep channels last in memory, which is faster on CPUs and in half precision on GPUs.
        compile: Compile encoder, decoder and head with torch.compile when they are first used.
        dropout: Probability of leaving out a channel of the decoder's output before the logits.
        model_options: Further arguments of the architecture's class in segmentation_models.pytorch.
        optimiser: How weights are updated.

    Raises:
        InputError: If a name is unknown, or weights are missing or do not fit.
    """

    def __init__(
        self,
        loss: nn.Module | None = None,
        *,
        num_classes: int,
        label: TrainingLabel = HardLabel(),  # noqa: B008 (has no state)
        auxiliary: AuxiliarySettings | None = None,
        architecture: str = "deeplabv3plus",
        encoder: str = "tu-tf_efficientnet_lite0",
        encoder_weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002
        dropout: float = 0.0,
        model_options: Mapping[str, Any] | None = None,
        optimiser: OptimiserSettings = OptimiserSettings(),  # noqa: B008 (frozen)
    ) -> None:
        """See the class."""
        super().__init__()
        self.loss: nn.Module = CompoundLoss(JaccardLoss()) if loss is None else deepcopy(loss)
        self.num_classes, self.optimiser_settings = num_classes, optimiser
        if isinstance(self.loss, StatisticsLoss):
            self.loss.upsample = "bilinear"
        self.objectives = Objectives(supervised_objectives(self.loss, label, auxiliary.share if auxiliary else None))
        self.network = create_model(
            architecture,
            encoder,
            num_classes,
            encoder_weights=encoder_weights,
            mean=mean,
            std=std,
            channels_last=channels_last,
            compile=compile,
            dropout=dropout,
            auxiliary=auxiliary,
            options=model_options,
        )
        self._training_counts = torch.zeros((), dtype=torch.int64)
        self.evaluation_loss = MeanMetric()
        self.evaluation_iou = FineGrainedIoU(num_classes)
        self.calibration = CalibrationError(num_classes, from_logits=True)

    def setup(self, stage: str) -> None:
        """Check that the data have the classes the network was built for.

        Raises:
            InputError: If they have not.
        """
        data = getattr(self.trainer, "datamodule", None)
        for split, dataset in getattr(data, "datasets", {}).items():
            if dataset.num_classes != self.num_classes:
                raise InputError(
                    f"model.num_classes is {self.num_classes}, but the {split} data have {dataset.num_classes} classes."
                )

    def forward(self, image: Tensor) -> Tensor:
        """Return the tested network's logits (B, C, h, w) at its own resolution, of images (B, 3, H, W) in [0, 1]."""
        logits: Tensor = self.tested_network(image)
        return logits

    @property
    def tested_network(self) -> SegmentationNetwork:
        """What is validated, tested and used: the network that is trained, unless a method keeps another one."""
        return self.network

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            InputError: If it is not finite; looked at in the steps that are logged and in an epoch's last.
        """
        label = batch["label"]
        loss, output = self.loss_and_output(batch)
        with users_error(f"step {self.global_step} (a lower model.optimiser.learning_rate may help)"):
            ids = class_map(output.logits, label.shape[-2:])
            # As one image: only the sum is needed, and for each image counted the host waits for the device.
            counts = image_counts(ids.flatten()[None], label.flatten()[None], self.num_classes)[0]
        self._training_counts = self._training_counts.to(counts.device) + counts
        self.log("train/loss", loss.detach(), prog_bar=True)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.is_last_batch or (every and (self.global_step + 1) % every == 0):
            if not loss.isfinite():
                raise InputError(
                    f"The loss is {loss.item()} at step {self.global_step}; "
                    "a lower model.optimiser.learning_rate may help."
                )
            score = table_score(self._training_counts[None], "mIoU_D")
            self.log("train/mIoU_D", score.float(), prog_bar=True)
        return loss

    def loss_and_output(self, batch: Batch) -> tuple[Tensor, NetworkOutput]:
        """Return the loss of a training batch, and what the network makes of its labelled images."""
        output = self.network.outputs(batch["image"])
        return self.training_loss(output, batch), output

    def training_loss(self, output: NetworkOutput, batch: Batch) -> Tensor:
        """Return the loss of labelled images; a method that adds to it overrides this."""
        loss: Tensor = self.objectives(output, batch)
        return loss

    def on_train_epoch_start(self) -> None:
        """Begin the running mIoU anew."""
        self._training_counts = torch.zeros((), dtype=torch.int64)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counts of the epoch's training images so far."""
        checkpoint["training_counts"] = self._training_counts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        self._training_counts = checkpoint["training_counts"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the scores."""
        label = batch["label"]
        logits = self(batch["image"])
        loss = loss_at_size(self.loss, logits, Target(label), batch["image"])
        logits = functional.interpolate(logits, size=label.shape[-2:], mode="bilinear")
        with users_error("val"):
            self.evaluation_iou.update(logits, label, image_ids=batch.get("index"))
            self.calibration.update(logits, label)
        self.evaluation_loss.update(loss, len(logits))

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        metrics = (self.evaluation_loss, self.evaluation_iou, self.calibration)
        scores = {"loss": metrics[0].compute(), **metrics[1].compute(), **metrics[2].compute()}
        for name in ("loss", "mIoU_D", "mIoU_I", "mIoU_C", "ECE"):
            # The same on all devices already, because metrics gather; the mean of it tells Lightning so.
            self.log(f"val/{name}", scores[name].float(), prog_bar=name == "mIoU_D", sync_dist=True)
        for metric in metrics:
            metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser and its schedule over the whole training."""
        optimiser = build_optimiser(self.network, self.optimiser_settings)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimiser, self.optimiser_settings, steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

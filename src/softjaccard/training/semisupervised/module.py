"""Training with labelled and unlabelled images."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from softjaccard.data.module import Batch
from softjaccard.errors import InputError, users_error
from softjaccard.models import NetworkOutput, SegmentationNetwork
from softjaccard.models.network import evaluation_mode
from softjaccard.training.objectives import ready_for_training
from softjaccard.training.semisupervised.base import SemiSupervisedMethod
from softjaccard.training.semisupervised.jml import JMLSemiSupervised
from softjaccard.training.supervised import SupervisedSegmentation


class SemiSupervised(SupervisedSegmentation):
    """Trains a network on labelled images, and on unlabelled ones with labels made by the network or its average.

    The network sees the labelled images and the weak views as one batch, then all strong views as another, as in
    UniMatch: batch normalisation is over these, and both go into its running averages. Labels for partners, and all
    labels that the average makes, are made in evaluation mode.

    The average of the network's parameters and buffers (Tarvainen and Valpola, arXiv 1703.01780) starts as the network
    after the first step, t = 0, and has the decay min(1 - 1 / (t + 1), decay) in step t.

    Args:
        method: How unlabelled images are learned from.
        ramp_up: Share of the steps in which the unlabelled images' weight rises to that of the method
            (:func:`ramp_up_factor`); with 0 it has it at once.
        test_average: Validate, test and use the average that makes the labels. By default it is the network itself, as
            with the methods that have no average, so that all are compared alike. Checkpoints have both.
        settings: As in `SupervisedSegmentation`.

    Raises:
        InputError: If the data have no unlabelled images, there is no average to test, or `ramp_up` is no share.
    """

    def __init__(
        self,
        method: SemiSupervisedMethod | None = None,
        *,
        ramp_up: float = 0.0,
        test_average: bool = False,
        **settings: Any,
    ) -> None:
        """See the class."""
        super().__init__(**settings)
        self.method: SemiSupervisedMethod = ready_for_training(method or JMLSemiSupervised())
        self.average: SegmentationNetwork | None = None
        if self.method.average_decay:
            self.average = deepcopy(self.network).eval().requires_grad_(False)
        if test_average and self.average is None:
            raise InputError(
                "model.test_average is true, but with this method there is no average of the network to test."
            )
        self.test_average = test_average
        if not 0 <= ramp_up <= 1:
            raise InputError(f"model.ramp_up is {ramp_up}; expected a share of the steps, from 0 to 1.")
        self.ramp_up = ramp_up

    @property
    def strong_views(self) -> int:
        """How many strong views of unlabelled images batches are to have; with 0 they have none of these images."""
        return len(self.method.strong_weights) if self.method.weight > 0 else 0

    @property
    def tested_network(self) -> SegmentationNetwork:
        """See `SupervisedSegmentation.tested_network`."""
        return self.average if self.test_average and self.average is not None else self.network

    def setup(self, stage: str) -> None:
        """Check the data."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.average is not None and str(self.trainer.precision) in ("16-true", "bf16-true"):
            raise InputError(
                f"trainer.precision is {self.trainer.precision}, in which the network's average would lose its small "
                "steps. Use the mixed precision of that kind."
            )
        if stage == "fit" and self.strong_views and getattr(data, "partition", None) is None:
            raise InputError(
                "data.labelled and data.unlabelled are missing: this model trains on images without labels, too. Set "
                "data.labelled to the share of the training images that have labels, such as 0.125, or to a file with "
                "their ids; or data.unlabelled to a folder of other images."
            )

    def loss_and_output(self, batch: Batch) -> tuple[Tensor, NetworkOutput]:
        """Return the loss of labelled and unlabelled images, and the output for the labelled ones."""
        if not self.strong_views:
            return super().loss_and_output(batch)
        own, partner = self._ask(batch)
        output, weak, perturbed = self._show_weak(batch)
        strong = self.network(batch["strong_image"].transpose(0, 1).flatten(0, 1))
        with users_error("model.method"):
            unlabelled = self.method(
                strong.chunk(self.strong_views), perturbed, weak if own is None else own, partner, batch
            )
        self.log("train/unlabelled", unlabelled.value.detach())
        self.log("train/confident", unlabelled.counted.detach(), prog_bar=True)
        weight = self.method.weight
        if self.ramp_up:
            weight *= ramp_up_factor(
                self.trainer.global_step / (self.ramp_up * self.trainer.estimated_stepping_batches)
            )
        return (self.training_loss(output, batch) + weight * unlabelled.value) / (1 + weight), output

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """Make a step of the optimiser, and let the average follow."""
        step = self.trainer.global_step
        super().optimizer_step(*arguments, **settings)
        if self.average is not None:
            follow(self.average, self.network, min(1 - 1 / (step + 1), self.method.average_decay))

    @torch.no_grad()
    def _ask(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Return logits of which labels are made: the average's for weak views, if there is one, and for partners'."""
        if self.average is not None:
            own, partner = self.average(torch.cat((batch["weak_image"], batch["partner_image"]))).chunk(2)
            return own, partner
        with evaluation_mode(self.network):
            partner = self.network(batch["partner_image"])
        # Older torch would give the training the weights that autocast has cast without gradient (issue 158232).
        torch.clear_autocast_cache()
        return None, partner

    def _show_weak(self, batch: Batch) -> tuple[NetworkOutput, Tensor, Tensor | None]:
        """Return the output for labelled images, and logits for the weak views, clean and with features left out."""
        labelled, weak = len(batch["image"]), len(batch["weak_image"])
        images = torch.cat((batch["image"], batch["weak_image"]))
        perturbed = None
        if self.method.perturbed_weight:
            both, perturbed = self.network.perturbed_outputs(images, weak, self.method.feature_dropout)
        else:
            both = self.network.outputs(images)
        auxiliary, features = (None if each is None else each[:labelled] for each in both[1:])
        return NetworkOutput(both.logits[:labelled], auxiliary, features), both.logits[labelled:], perturbed


def ramp_up_factor(progress: float) -> float:
    """Return exp(-5 (1 - t)^2) at the progress t, and 1 from t = 1 (Laine and Aila, arXiv 1610.02242, section 3.1).

    Example:
        >>> [round(ramp_up_factor(progress), 4) for progress in (0, 0.5, 1, 2)]
        [0.0067, 0.2865, 1.0, 1.0]
    """
    return math.exp(-5 * max(0.0, 1 - progress) ** 2)


@torch.no_grad()
def follow(average: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    """Move an average of a network, parameters and buffers, towards it; integers are taken over.

    Args:
        average: Changed in place.
        network: Of the same kind.
        decay: What the average keeps of itself.

    Example:
        >>> average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> average.weight.data.fill_(1.0), network.weight.data.fill_(2.0)
        (tensor([[1.]]), tensor([[2.]]))
        >>> follow(average, network, 0.75)
        >>> average.weight.data
        tensor([[1.2500]])
    """
    for mine, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)

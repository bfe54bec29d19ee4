"""What a network is trained with: which head, with which loss, on which label, and how much it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn import functional

from softjaccard.data.module import Batch
from softjaccard.errors import InputError, users_error
from softjaccard.losses import CompoundLoss, CrossEntropyLoss
from softjaccard.losses.base import StatisticsLoss
from softjaccard.models import NetworkOutput
from softjaccard.training.targets import Target, TrainingLabel

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Objective:
    """One head's part in the training: `weight` · `loss`(the head's logits, `label`(the batch)).

    Args:
        loss: From logits (B, C, h, w) and a label to a scalar.
        label: Makes the label of a batch; objectives that share one make it once.
        weight: Factor of the loss.
        head: "main" or "auxiliary".
    """

    loss: nn.Module
    label: TrainingLabel
    weight: float = 1.0
    head: Literal["main", "auxiliary"] = "main"


class Objectives(nn.Module):
    """The sum of several objectives.

    Losses of softjaccard interpolate logits themselves, and sum over all devices: both are set on copies of them.

    Args:
        objectives: At least one.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        """See the class."""
        super().__init__()
        self.objectives = tuple(replace(each, loss=ready_for_training(each.loss)) for each in objectives)
        self.losses = nn.ModuleList(objective.loss for objective in self.objectives)

    def forward(self, output: NetworkOutput, batch: Batch) -> Tensor:
        """Return the loss of a batch.

        Raises:
            InputError: If the label cannot be made of the batch, or a loss refuses it.
        """
        targets: dict[TrainingLabel, Target] = {}
        total = output.logits.new_zeros(())
        for objective in self.objectives:
            if objective.label not in targets:
                targets[objective.label] = objective.label(batch)
            logits = output.logits if objective.head == "main" else output.auxiliary
            assert logits is not None
            loss = loss_at_size(objective.loss, logits, targets[objective.label], batch["image"])
            total = total + objective.weight * loss
        return total


def supervised_objectives(loss: nn.Module, label: TrainingLabel, auxiliary_share: float | None) -> list[Objective]:
    """Share a loss out between the heads: all on the main one, or a part of its cross-entropy on the auxiliary one.

    Args:
        loss: Of the whole network.
        label: What it is trained on.
        auxiliary_share: The auxiliary head's part of the cross-entropy; None if there is no such head.

    Raises:
        InputError: If there is a head, but the loss has no cross-entropy for it.

    Example:
        >>> from softjaccard import JaccardLoss
        >>> from softjaccard.training.targets import HardLabel
        >>> main, auxiliary = supervised_objectives(CompoundLoss(JaccardLoss()), HardLabel(), 0.5)
        >>> main.loss.region_weight, main.loss.cross_entropy_weight, auxiliary.weight
        (0.75, 0.125, 0.125)
    """
    if auxiliary_share is None:
        return [Objective(loss, label)]
    if type(loss) is CrossEntropyLoss:
        return [Objective(loss, label, 1 - auxiliary_share), Objective(loss, label, auxiliary_share, "auxiliary")]
    if not isinstance(loss, CompoundLoss):
        raise InputError(
            "model.auxiliary: an auxiliary head is trained with a part of the cross-entropy in CompoundLoss "
            f"or CrossEntropyLoss, but loss is {type(loss).__name__}. Use one of these, or no such head."
        )
    main = deepcopy(loss)
    main.cross_entropy_weight *= 1 - auxiliary_share
    auxiliary = CrossEntropyLoss(
        class_weight=loss.class_weight,
        activation=loss.activation,
        temperature=loss.temperature,
        ignore_index=loss.ignore_index,
        align_corners=loss.align_corners,
        backend=loss.backend,
    )
    weight = loss.cross_entropy_weight * auxiliary_share
    return [Objective(main, label), Objective(auxiliary, label, weight, "auxiliary")]


def ready_for_training(module: _Module) -> _Module:
    """Return a copy whose softjaccard losses interpolate logits and sum over all devices."""
    copy = deepcopy(module)
    for loss in copy.modules():
        if isinstance(loss, StatisticsLoss):
            loss.upsample = "bilinear"
            loss.process_group = loss.process_group or "world"
    return copy


def loss_at_size(loss: nn.Module, logits: Tensor, target: Target, image: Tensor) -> Tensor:
    """Return the loss of logits at a head's own resolution, on a label at the image's.

    Raises:
        InputError: If the loss refuses them.
    """
    with users_error("model.loss"):
        value: Tensor
        if isinstance(loss, StatisticsLoss):
            value = loss(logits, target.label, target.mask, size=image.shape[-2:])
            return value
        if not isinstance(target.label, Tensor) or target.mask is not None:
            raise InputError(
                f"{type(loss).__name__} gets hard labels only: leave model.label at HardLabel, or use JaccardLoss, "
                "CompoundLoss or another loss of softjaccard's that is made of region statistics."
            )
        # In float32: other losses may not take half precision.
        value = loss(functional.interpolate(logits.float(), size=image.shape[-2:], mode="bilinear"), target.label)
        return value

"""The optimiser and its learning rate over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from softjaccard.errors import check_settings
from softjaccard.models import SegmentationNetwork


@dataclass(frozen=True)
class OptimiserSettings:
    """How weights are updated.

    Args:
        name: AdamW, or SGD with Nesterov-free momentum.
        learning_rate: Of the encoder, at its highest.
        decoder_factor: Everything but the encoder learns this many times faster.
        weight_decay: Of weights; biases and the scales of normalisations have none.
        momentum: Of SGD.
        power: Of the poly schedule; the paper's code has 1 with AdamW and 0.9 with SGD.
        warmup: Share of the steps in which the rate rises linearly.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 6e-5
    decoder_factor: float = 10.0
    weight_decay: float = 0.01
    momentum: float = 0.9
    power: float = 1.0
    warmup: float = 0.01

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: If one is out of its range.
        """
        checks = (
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("decoder_factor", 0 < self.decoder_factor < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("momentum", 0 <= self.momentum < 1, "from 0 to below 1"),
            ("power", 0 <= self.power < math.inf, "at least 0"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps, from 0 to below 1"),
        )
        check_settings("optimiser", self, checks)


def build_optimiser(network: SegmentationNetwork, settings: OptimiserSettings) -> Optimizer:
    """Make the optimiser of a network's parameter groups."""
    groups = network.parameter_groups(settings.learning_rate, settings.decoder_factor, settings.weight_decay)
    return AdamW(groups) if settings.name == "adamw" else SGD(groups, momentum=settings.momentum)


def build_schedule(optimiser: Optimizer, settings: OptimiserSettings, steps: int) -> LambdaLR:
    """Make the schedule of a training of so many steps; it is to be advanced after every step."""
    return LambdaLR(optimiser, partial(poly_factor, steps=steps, warmup=settings.warmup, power=settings.power))


def poly_factor(step: int, *, steps: int, warmup: float, power: float) -> float:
    """Return the factor on the learning rate at a step (from 0): a linear rise, then (1 - progress) ** power.

    Example:
        >>> [round(poly_factor(step, steps=6, warmup=0.34, power=1.0), 2) for step in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    remaining = 1 - (step - rising) / max(1, steps - rising)
    return float(max(0.0, remaining) ** power)

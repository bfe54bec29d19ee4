"""What all losses share: a module whose value is a formula on region statistics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from softjaccard.labels import LabelLike
from softjaccard.labels.kinds import Activation
from softjaccard.statistics.distributed import ProcessGroupLike, check_process_group, sum_over_ranks
from softjaccard.statistics.region import (
    Backend,
    Gradient,
    RegionStatistics,
    Upsample,
    check_options,
    region_statistics,
)


def expect_number(name: str, value: float, at_least: float = 0.0) -> float:
    """The value as a float; a ValueError if it isn't a finite number or is too small."""
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < at_least:
        raise ValueError(f"{name}: expected a finite number of at least {at_least:g}, got {value!r}")
    return float(value)


def expect_temperature(temperature: float) -> float:
    """Return the temperature.

    Raises:
        ValueError: If it is not a positive number.
    """
    if not expect_number("temperature", temperature) > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature!r}")
    return float(temperature)


def as_class_weight(class_weight: Sequence[float] | Tensor | None) -> Tensor | None:
    """The weights as a float tensor (C,)."""
    if class_weight is None:
        return None
    weight = torch.as_tensor(class_weight, dtype=torch.float32).detach().clone()
    # As for labels, values are not looked at on an accelerator or while torch.compile traces.
    looked_at = weight.device.type == "cpu" and not torch.compiler.is_compiling()
    if weight.ndim != 1 or (looked_at and not bool(((weight >= 0) & weight.isfinite()).all())):
        raise ValueError(
            f"class_weight: expected one finite number of at least 0 for each class, (C,), got {class_weight!r}"
        )
    return weight


class StatisticsLoss(nn.Module, ABC):
    """A loss that is a formula on region statistics; see :func:`~softjaccard.statistics.region_statistics`."""

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | Tensor | None,
        activation: Activation,
        temperature: float,
        gradient: Gradient,
        ignore_index: int,
        upsample: Upsample,
        align_corners: bool,
        backend: Backend,
        process_group: ProcessGroupLike,
    ) -> None:
        """Keep the options of the pixel pass."""
        super().__init__()
        check_options(activation, temperature, gradient, ignore_index, upsample, align_corners, backend)
        check_process_group(process_group)
        self._process_group: ProcessGroupLike = process_group
        self.register_buffer("class_weight", as_class_weight(class_weight))
        self.activation: Activation = activation
        self.temperature = temperature
        self.gradient: Gradient = gradient
        self.ignore_index = ignore_index
        self.upsample: Upsample = upsample
        self.align_corners = align_corners
        self.backend: Backend = backend

    @property
    def process_group(self) -> ProcessGroupLike:
        """The ranks whose batches are joined."""
        return self._process_group

    @process_group.setter
    def process_group(self, process_group: ProcessGroupLike) -> None:
        check_process_group(process_group)
        self._process_group = process_group

    @property
    @abstractmethod
    def want(self) -> frozenset[str]:
        """The names of the statistics that this loss needs."""

    @abstractmethod
    def from_statistics(self, statistics: RegionStatistics) -> Tensor:
        """The loss of pixels summed up already, in ``region_statistics(..., want=loss.want)``.

        With a ``process_group`` of the pixels of all its ranks, each of which has to call this.

        Args:
            statistics: of any part of the pixels, or of several added up.

        Returns:
            A scalar.

        Raises:
            ValueError: a statistic that this loss needs was not asked for.
        """

    def statistics(
        self,
        logits: Tensor,
        label: LabelLike,
        mask: Tensor | None = None,
        *,
        size: Sequence[int] | None = None,
        want: Collection[str] | None = None,
    ) -> RegionStatistics:
        """The statistics of a batch with this loss's options; ``want`` defaults to what this loss needs."""
        return region_statistics(
            logits,
            label,
            mask=mask,
            ignore_index=self.ignore_index,
            activation=self.activation,
            temperature=self.temperature,
            gradient=self.gradient,
            upsample=self.upsample,
            align_corners=self.align_corners,
            size=size,
            want=self.want if want is None else want,
            backend=self.backend,
        )

    def forward(
        self, logits: Tensor, label: LabelLike, mask: Tensor | None = None, *, size: Sequence[int] | None = None
    ) -> Tensor:
        """The loss of a batch.

        Args:
            logits: ``(B, C, *spatial)``; probabilities if ``activation`` is None.
            label: integers ``(B, *spatial)``, a float distribution ``(B, C, *spatial)``, or one of the kinds of
                :mod:`softjaccard.labels`.
            mask: boolean or non-negative weights ``(B, *spatial)``: the pixels that count.
            size: ``(H, W)`` to interpolate to, with ``upsample``; None takes the label's, or the mask's if the label is
                a teacher's.

        Returns:
            A scalar.

        Raises:
            TypeError: an argument has the wrong dtype.
            ValueError: a shape does not fit or a value is invalid.
        """
        return self.from_statistics(self.statistics(logits, label, mask, size=size))

    def over_ranks(
        self, statistics: RegionStatistics, sums: Mapping[str, Tensor] | None = None
    ) -> tuple[RegionStatistics, dict[str, Tensor]]:
        """The total of the images of all ranks, and other sums added up; this rank's own without a group."""
        return sum_over_ranks(statistics.total(), sums or {}, self.process_group)

    def weight_for(self, statistic: Tensor) -> Tensor | None:
        """The class weights, checked to be as many as the statistic (B, C) has classes."""
        if self.class_weight is not None and len(self.class_weight) != statistic.shape[1]:
            raise ValueError(
                f"class_weight: expected one weight for each of the {statistic.shape[1]} classes, got "
                f"{len(self.class_weight)}"
            )
        return self.class_weight

    def __copy__(self) -> StatisticsLoss:
        """A shallow copy in the same process group."""
        copy = self.__new__(type(self))
        copy.__dict__.update(self._state())
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> StatisticsLoss:
        """A copy in the same process group, which itself can't be copied."""
        memo[id(self.process_group)] = self.process_group
        copy = memo[id(self)] = self.__new__(type(self))
        copy.__dict__.update(deepcopy(self._state(), memo))
        return copy

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled; not what ``compile()`` made.

        Raises:
            TypeError: the process group exists only in this process.
        """
        if not (self.process_group is None or isinstance(self.process_group, str)):
            raise TypeError(
                "process_group: a ProcessGroup belongs to this process and cannot be pickled; use 'world', or set "
                "loss.process_group = None before and the group again after loading"
            )
        return self._state()

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state


def value_of(
    loss: StatisticsLoss, logits: Tensor, label: LabelLike, mask: Tensor | None, size: Sequence[int] | None
) -> Tensor:
    """The value of a loss made on the spot; its class weights are on the CPU until here."""
    return loss.to(logits.device).forward(logits, label, mask, size=size)

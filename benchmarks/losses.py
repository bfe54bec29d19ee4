"""The losses that are compared, and the measurement of one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import softjaccard
from benchmarks.inputs import Inputs, draw
from benchmarks.measure import Step, median_seconds, peak_bytes

Objective = Callable[[Inputs], Tensor]
BASELINE = "cross-entropy"


class Skipped(Exception):  # noqa: N818 -- not an error
    """This machine or this loss can't do the case; the message says why."""


class Contender(NamedTuple):
    """A loss to compare."""

    title: str
    make: Callable[[bool], Objective]
    """From whether the label is soft, the loss of some inputs."""
    cuda_only: bool = False


def _ours(**options: Any) -> Objective:
    loss = softjaccard.CompoundLoss(softjaccard.JaccardLoss(upsample="bilinear", **options))
    return lambda inputs: loss(inputs.logits, inputs.own_label(), size=inputs.size)


def _compiled(_: bool) -> Objective:
    from torch._dynamo.exc import TorchDynamoException

    torch._dynamo.reset()  # or it would give up after some cases in one process, and run them as they are
    compiled = torch.compile(_ours(backend="reference"), dynamic=False)

    def objective(inputs: Inputs) -> Tensor:
        try:
            return compiled(inputs)
        except TorchDynamoException as error:
            raise Skipped(f"torch.compile failed: {str(error).splitlines()[0]}") from error

    return objective


def _cross_entropy(_: bool) -> Objective:
    return lambda inputs: F.cross_entropy(inputs.full_logits(), inputs.full_label())


def _smp(name: str, soft: bool) -> Objective:
    if soft:
        raise Skipped("takes hard labels only")
    try:
        from segmentation_models_pytorch import losses
    except ImportError:
        raise Skipped("segmentation_models_pytorch is not installed") from None
    loss = getattr(losses, name)(mode="multiclass")
    return lambda inputs: loss(inputs.full_logits(), inputs.full_label())


def _monai(name: str, soft: bool) -> Objective:
    try:
        from monai import losses
    except ImportError:
        raise Skipped("monai is not installed") from None
    loss = getattr(losses, name)(softmax=True, to_onehot_y=not soft, soft_label=soft)

    def objective(inputs: Inputs) -> Tensor:
        label = inputs.full_label()
        return loss(inputs.full_logits(), label if soft else label.unsqueeze(1))

    return objective


CONTENDERS: dict[str, Contender] = {
    BASELINE: Contender("torch `F.cross_entropy`", _cross_entropy),
    "chunked": Contender("0.25 CE + 0.75 JML, `chunked`", lambda _: _ours(backend="chunked")),
    "triton": Contender("0.25 CE + 0.75 JML, `triton`", lambda _: _ours(backend="triton"), cuda_only=True),
    "reference": Contender("0.25 CE + 0.75 JML, `reference`", lambda _: _ours(backend="reference")),
    "compiled": Contender("0.25 CE + 0.75 JML, `reference` compiled", _compiled),
    "smp-jaccard": Contender("segmentation_models.pytorch `JaccardLoss`", lambda soft: _smp("JaccardLoss", soft)),
    "smp-dice": Contender("segmentation_models.pytorch `DiceLoss`", lambda soft: _smp("DiceLoss", soft)),
    "monai-dice": Contender("MONAI `DiceLoss`", lambda soft: _monai("DiceLoss", soft)),
    "monai-tversky": Contender("MONAI `TverskyLoss`", lambda soft: _monai("TverskyLoss", soft)),
}


@dataclass(frozen=True)
class LossCase:
    """One loss, and what it is measured on."""

    loss: str
    shape: tuple[int, int, int, int]
    """(B, C, H, W) of the label's resolution."""
    stride: int
    """By how much smaller the logits are."""
    label: str
    dtype: str

    @property
    def name(self) -> str:
        """What ``--cases`` is matched against."""
        return f"{self.loss}/{'x'.join(map(str, self.shape))}/stride{self.stride}/{self.label}/{self.dtype}"

    def measure(self, device: torch.device, budget: float) -> dict[str, object]:
        """Time and memory of forward and backward, beside cross-entropy of the hard label."""
        loss = CONTENDERS[self.loss].make(self.label != "hard")
        inputs = draw(self.shape, self.stride, self.label, self.dtype, device)
        step, baseline = _step(loss, inputs), _step(_cross_entropy(False), inputs.hardened())
        step()  # imports, thread pools, compilation
        baseline()
        peak = peak_bytes(step, device)
        times = median_seconds({"loss": step, "baseline": baseline}, device, budget)
        return {
            "seconds": times["loss"],
            "baseline_seconds": times["baseline"],
            "time_ratio": times["loss"] / times["baseline"],
            "peak_bytes": peak,
            "peak_ratio": None if peak is None else peak / (prod(self.shape) * inputs.logits.element_size()),
        }


def _step(loss: Objective, inputs: Inputs) -> Step:
    def step() -> None:
        torch.autograd.grad(loss(inputs), inputs.logits)

    return step

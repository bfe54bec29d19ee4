"""Hand-made outputs for unlabelled images, and the losses of their streams, dense, from the formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import oracle
import ranks
from softjaccard.training.objectives import ready_for_training
from softjaccard.training.semisupervised import FixMatch, JMLSemiSupervised

CLASSES = 4
IMAGE = (13, 18)
Array = oracle.Array


class Outputs(NamedTuple):
    """What `SemiSupervisedMethod.forward` takes."""

    strong: tuple[Tensor, ...]
    perturbed: Tensor | None
    own: Tensor
    partner: Tensor
    batch: dict[str, Tensor]

    def part(self, images: slice) -> Outputs:
        """Those of some of the images, as leaves."""
        strong = tuple(leaf(each[images]) for each in self.strong)
        perturbed = None if self.perturbed is None else leaf(self.perturbed[images])
        batch = {name: value[images] for name, value in self.batch.items()}
        return Outputs(strong, perturbed, self.own[images], self.partner[images], batch)

    def trained(self) -> list[Tensor]:
        """The logits that get a gradient."""
        return [*self.strong, *([] if self.perturbed is None else [self.perturbed])]


def leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()


def outputs(views: int, perturbed: bool, images: int = 3, dtype: torch.dtype = torch.float64) -> Outputs:
    """Logits of several resolutions; boxes of several sizes, one image with none; padding at several sides."""
    generator = torch.Generator().manual_seed(0)

    def logits(*size: int, scale: float) -> Tensor:
        return scale * torch.randn(images, CLASSES, *size, generator=generator, dtype=torch.float64)

    boxes = torch.zeros(images, 2, *IMAGE, dtype=torch.bool)
    boxes[0, 0, 2:9, 3:12] = boxes[1, 0, 5:, :4] = boxes[1, 1, :6, 8:15] = boxes[2, 1, 4:8] = True
    valid, partner_valid = (torch.ones(images, *IMAGE, dtype=torch.bool) for _ in range(2))
    valid[0, :, 14:] = valid[2, :3] = partner_valid[1, :, :2] = partner_valid[0, 7:] = False
    batch = {"weak_image": torch.zeros(images, 3, *IMAGE), "weak_valid": valid, "partner_valid": partner_valid}
    return Outputs(
        tuple(leaf(logits(4, 5, scale=1.5).to(dtype)) for _ in range(views)),
        leaf(logits(4, 5, scale=1.5).to(dtype)) if perturbed else None,
        logits(7, 6, scale=4.0).to(dtype),
        logits(7, 6, scale=4.0).to(dtype),
        batch | {"box": boxes[:, :views]},
    )


def at_full_size(logits: Tensor) -> Array:
    rows, columns = (
        oracle.axis_matrix(source, target, False) for source, target in zip(logits.shape[2:], IMAGE, strict=True)
    )
    return rows @ oracle.array(logits) @ columns.T


class Pasted(NamedTuple):
    """What a view is to say at full size: probabilities (B, C, H, W), and which pixels are valid (B, H, W)."""

    probabilities: Array
    valid: Array

    @property
    def confidence(self) -> Array:
        return self.probabilities.max(1)


def pasted(made: Outputs, view: int | None, temperature: float = 1.0) -> Pasted:
    """The pseudo-label of a strong view, or of the weak one if None."""
    own, partner = (oracle.softmax(at_full_size(each) / temperature) for each in (made.own, made.partner))
    valid, partner_valid = (made.batch[name].numpy() for name in ("weak_valid", "partner_valid"))
    if view is None:
        return Pasted(own, valid)
    box = made.batch["box"][:, view].numpy()
    return Pasted(np.where(box[:, None], partner, own), np.where(box, partner_valid, valid))


def value_and_gradient(loss: Any, logits: Tensor, label: Any, weight: Array) -> tuple[float, Array]:
    """A loss of the statistics of logits at full size, and its gradient by the logits of low resolution."""
    pixels = oracle.pixels_of(
        torch.from_numpy(at_full_size(logits)), torch.from_numpy(label), mask=torch.from_numpy(weight)
    )
    value, gradient = oracle.value_and_gradient(loss, pixels)
    rows, columns = (
        oracle.axis_matrix(source, target, False) for source, target in zip(logits.shape[2:], IMAGE, strict=True)
    )
    return value, rows.T @ gradient @ columns


def hard_stream(logits: Tensor, target: Pasted, threshold: float) -> tuple[float, Array]:
    """Cross-entropy of confident pixels with their most probable class, divided by the number of valid pixels."""
    counted = target.valid & (target.confidence >= threshold)
    return value_and_gradient(
        lambda sums: sums["cross_entropy"].sum() / target.valid.sum(),
        logits, target.probabilities.argmax(1), counted.astype(float),
    )  # fmt: skip


def soft_stream(logits: Tensor, target: Pasted, weight: Array, **options: Any) -> tuple[float, Array]:
    """A quarter of cross-entropy over valid pixels, and three of JML times the share of pixels that count."""
    valid, weight = target.valid.sum(), np.where(target.valid, weight, 0.0)
    return value_and_gradient(
        lambda sums: 0.25 * sums["cross_entropy"].sum() / valid
        + 0.75 * weight.sum() / valid * oracle.tversky(sums, **options),
        logits, target.probabilities, weight,
    )  # fmt: skip


def losses_of_parts(rank: int, _: int) -> dict[str, list[Tensor]]:
    """What each of two processes makes of its images."""
    return losses(ranks.slices((2, 1))[rank])


def losses(images: slice) -> dict[str, list[Tensor]]:
    """Values, counted shares and gradients of some methods."""
    results = {}
    for name, method in (
        ("FixMatch", FixMatch(threshold=0.8)),
        ("JML", JMLSemiSupervised(threshold=0.8)),
        ("JML per image", JMLSemiSupervised(confidence="weight", per="image")),
    ):
        made = outputs(len(method.strong_weights), bool(method.perturbed_weight)).part(images)
        value, counted = ready_for_training(method)(*made)
        results[name] = [value.detach(), counted, *torch.autograd.grad(value, made.trained())]
    return results

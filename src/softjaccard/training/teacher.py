"""A teacher: a trained network that is asked what it makes of a student's images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from softjaccard.errors import InputError
from softjaccard.models import NetworkOutput, SegmentationNetwork

Network = Callable[[Tensor], "Tensor | NetworkOutput"]


class Teacher:
    """A network that is put into evaluation mode and without gradients, and stays so.

    Args:
        network: From images (B, 3, H, W) in [0, 1] to logits (B, C, h, w), or to a `NetworkOutput`.
    """

    def __init__(self, network: Network) -> None:
        """See the class."""
        self._network = network
        if isinstance(network, nn.Module):
            network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> NetworkOutput:
        """Return the output at the network's own resolution."""
        network = self._network.outputs if isinstance(self._network, SegmentationNetwork) else self._network
        output = network(image)
        return output if isinstance(output, NetworkOutput) else NetworkOutput(output, None, None)

    def to(self, like: Tensor) -> None:
        """Move the network's weights to where another tensor is, in its precision."""
        if isinstance(self._network, nn.Module):
            self._network.to(like)


def load_teacher(path: str, classes: Sequence[str], scale: float) -> tuple[SegmentationNetwork, Path]:
    """Build a teacher's network from its run, and say from which checkpoint.

    Args:
        path: The folder of a run, whose best checkpoint is taken, or the file of a checkpoint.
        classes: Names of the student's.
        scale: Factor on the height and width of the student's images; another one of the teacher's is warned of.

    Raises:
        InputError: If there is none, or it was trained on other classes.
    """
    from softjaccard.training.run import load_run_network

    try:
        trained = load_run_network(Path(path).expanduser())
    except InputError as error:
        raise InputError(f"model.teacher: {error}") from error
    if trained.classes and tuple(classes) != trained.classes:
        raise InputError(
            f"model.teacher: {trained.checkpoint} has {len(trained.classes)} classes ({', '.join(trained.classes)}), "
            f"but the student's data have {len(classes)} ({', '.join(classes)}). Choose a teacher that was trained on "
            "the student's classes."
        )
    if scale != trained.scale:
        warnings.warn(
            f"model.teacher: {trained.checkpoint} was trained on images at scale {trained.scale}, but sees the "
            f"student's at {scale}.",
            stacklevel=2,
        )
    network = trained.network
    if not isinstance(network, SegmentationNetwork):
        raise InputError(f"model.teacher: the network of {path} is no SegmentationNetwork.")
    return network, trained.checkpoint

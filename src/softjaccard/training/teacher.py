"""A teacher: a trained network that is asked what it makes of a student's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from softjaccard.errors import InputError
from softjaccard.models import NetworkOutput, SegmentationNetwork

Network = Callable[[Tensor], "Tensor | NetworkOutput"]


class Teacher:
    """A network in evaluation mode and without gradients.

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

    def to(self, device: torch.device) -> None:
        """Move the network's weights."""
        if isinstance(self._network, nn.Module):
            self._network.to(device)


def load_teacher(path: str, num_classes: int) -> tuple[SegmentationNetwork, Path]:
    """Build a teacher's network from its run, and say from which checkpoint.

    Args:
        path: The folder of a run, whose best checkpoint is taken, or the file of a checkpoint.
        num_classes: Of the student.

    Raises:
        InputError: If there is none, or it was trained on another number of classes.
    """
    from softjaccard.training.run import load_run_network

    try:
        trained = load_run_network(Path(path).expanduser())
    except InputError as error:
        raise InputError(f"model.teacher: {error}") from error
    if len(trained.classes) != num_classes:
        raise InputError(
            f"model.teacher: {trained.checkpoint} has {len(trained.classes)} classes ({', '.join(trained.classes)}), "
            f"but the student has {num_classes}. Choose a teacher that was trained on the student's classes."
        )
    network = trained.network
    if not isinstance(network, SegmentationNetwork):
        raise InputError(f"model.teacher: the network of {path} is no SegmentationNetwork.")
    return network, trained.checkpoint

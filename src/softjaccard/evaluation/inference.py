"""Logits of whole images of any size: sliding windows, several scales, mirroring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from softjaccard.data.transforms import PADDING_GREY
from softjaccard.errors import InputError


class Predictor(Protocol):
    """What has a method `predict` from images (B, 3, H, W) to logits, such as `SegmentationNetwork`."""

    def predict(self, image: Tensor) -> Tensor:
        """Return logits (B, C, h, w)."""


Network: TypeAlias = Predictor | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InferenceSettings:
    """How the logits of a whole image are made.

    Attributes:
        window: Height and width of what the network sees at once; None shows it the whole image.
        overlap: The share of a window that the next one covers again, in [0, 1). With a third, the next window begins
            after two thirds, rounded to a pixel.
        scales: Factors on the image's height and width; the logits of all are averaged. The window stays as it is.
        flip: Average with the logits of the mirrored image.

    Raises:
        InputError: If a value is out of its range.
    """

    window: tuple[int, int] | None = None
    overlap: float = 1 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        """See the class."""
        if self.window is not None and min(self.window) < 1:
            raise InputError(f"window is {self.window}, but its height and width must be at least 1.")
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap is {self.overlap}, but must be at least 0 and below 1.")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"scales are {self.scales}, but there must be at least one, and all above 0.")


@torch.no_grad()
def predict_logits(network: Network, image: Tensor, settings: InferenceSettings = InferenceSettings()) -> Tensor:
    """Return the logits of images, averaged over windows, scales and mirror images.

    The last window of a row or column is shifted inwards to end with the image. Images smaller than the window are
    padded below and to the right with the grey of the training crops, and the padding's logits are left out. Memory
    above that of the network does not depend on the number of windows: one sum of logits and, with several scales or
    mirroring, their total and a resized or mirrored copy.

    Args:
        network: Its method `predict` is called with each window, or else the network itself (a module in evaluation
            mode, or a function); logits of a lower resolution are interpolated to the window's size.
        image: Float (B, 3, H, W) in [0, 1], on the network's device.
        settings: See there.

    Returns:
        Logits (B, C, H, W), in float32 at least, without gradient.

    Raises:
        InputError: If the image is not such a tensor, the network returns none of shape (B, C, h, w), or it is a module
            that is called itself and is in training mode.

    Example:
        >>> image = torch.rand(1, 3, 50, 70)
        >>> settings = InferenceSettings(window=(32, 32), scales=(0.75, 1.0), flip=True)
        >>> predict_logits(torch.nn.Conv2d(3, 5, 3, stride=2, padding=1).eval(), image, settings).shape
        torch.Size([1, 5, 50, 70])
    """
    if image.ndim != 4 or image.numel() == 0 or not image.is_floating_point():
        raise InputError(f"image is {image.dtype} {tuple(image.shape)}; expected floats (B, 3, H, W) in [0, 1].")
    predict = _prediction_of(network)
    size = image.shape[-2:]
    views = list(product(settings.scales, (False, True) if settings.flip else (False,)))
    total: Tensor | None = None
    for scale, mirrored in views:
        view = _resize(image, [max(1, round(scale * length)) for length in size])
        logits = _slide(predict, view.flip(-1) if mirrored else view, settings)
        logits = _resize(logits.flip(-1) if mirrored else logits, size)
        total = logits if total is None else total.add_(logits)
    assert total is not None
    return total.div_(len(views))


def _prediction_of(network: Network) -> Callable[[Tensor], Tensor]:
    if hasattr(network, "predict"):
        predict: Callable[[Tensor], Tensor] = network.predict
        return predict
    if isinstance(network, nn.Module) and network.training:
        raise InputError("network is in training mode, in which dropout and the like are at work: call network.eval().")
    return network


def _slide(predict: Callable[[Tensor], Tensor], image: Tensor, settings: InferenceSettings) -> Tensor:
    """Return the mean of the windows' logits, a tensor of our own."""
    height, width = size = image.shape[-2:]
    window = settings.window or size
    image = functional.pad(image, (0, max(0, window[1] - width), 0, max(0, window[0] - height)), value=PADDING_GREY)
    starts = (_starts(*lengths, settings.overlap) for lengths in zip(image.shape[-2:], window, strict=True))
    total, count = None, torch.zeros(image.shape[-2:], device=image.device)
    for top, left in product(*starts):
        inside = (..., slice(top, top + window[0]), slice(left, left + window[1]))
        logits = predict(image[inside])
        if logits.ndim != 4 or len(logits) != len(image):
            raise InputError(
                f"network returned {tuple(logits.shape)} for images {tuple(image[inside].shape)}; "
                f"expected logits ({len(image)}, C, h, w)."
            )
        if total is None:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            total = torch.zeros((*logits.shape[:2], *image.shape[-2:]), dtype=dtype, device=logits.device)
        total[inside] += _resize(logits.to(total.dtype), window)
        count[inside] += 1
    assert total is not None
    return total.div_(count)[..., :height, :width]


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along one side; the last one ends with the image."""
    stride = max(1, round(window * (1 - overlap)))
    return [*range(0, length - window, stride), length - window]


def _resize(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate linearly, averaging where it gets smaller, as images of the data sets are scaled."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return functional.interpolate(pixels, size=tuple(size), mode="bilinear", antialias=True)

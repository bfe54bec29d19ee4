"""What happens to an image and its label between the file and the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

from softjaccard.errors import InputError
from softjaccard.labels import RaterLabel, dense

IGNORE_INDEX = -100
"""The id of ignored pixels in every batch, whatever a data set's files use; the default of all losses and metrics."""

PADDING_GREY = 0.5
"""Padding of images in [0, 1]: close to zero after any of the usual normalisations."""

_PADDING = {"image": PADDING_GREY, "label": IGNORE_INDEX, "votes": IGNORE_INDEX, "soft_label": 0.0}
"""The entries with a value for each pixel, and what they are padded with."""

# A sum of float32 weights that is one half may come out a little smaller.
_HALF = 0.5 - 1e-5

_MOST = {
    "brightness": math.inf, "contrast": math.inf, "saturation": math.inf, "hue": 0.5,
    "jitter_probability": 1.0, "grey_probability": 1.0, "blur_probability": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class PhotometricSettings:
    """Random changes of an image's colours and sharpness; by default none.

    Brightness, contrast and saturation are multiplied by a factor from [max(0, 1 - x), 1 + x] and the hue is turned by
    an angle from [-x, x] of the circle, all four in random order; then come grey and a Gaussian blur.

    Args:
        brightness: Strength x, at least 0.
        contrast: Strength x, at least 0.
        saturation: Strength x, at least 0.
        hue: Strength x, from 0 to 0.5.
        jitter_probability: Probability of the four changes above, together.
        grey_probability: Probability of taking the colour away.
        blur_probability: Probability of the blur.
        blur_sigma: Least and largest standard deviation of the blur in pixels.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_probability: float = 1.0
    grey_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def check(self) -> None:
        """Raise InputError if a number is out of its range."""
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InputError(f"photometric.{name} is {value}, but must be from 0 to {most:g}.")
        _check_range("photometric.blur_sigma", self.blur_sigma)

    @property
    def neutral(self) -> bool:
        """Whether images stay as they are."""
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        return not (self.jitter_probability * max(strengths) or self.grey_probability or self.blur_probability)

    def change(self, image: Tensor, random: np.random.Generator) -> Tensor:
        """Return a changed image, float (3, H, W) in [0, 1]."""
        if random.random() < self.jitter_probability:
            image = self._jitter(image, random)
        if random.random() < self.grey_probability:
            image = vision.rgb_to_grayscale(image, num_output_channels=3)
        if random.random() < self.blur_probability:
            image = _blur(image, random.uniform(*self.blur_sigma))
        return image

    def _jitter(self, image: Tensor, random: np.random.Generator) -> Tensor:
        changes = (
            (vision.adjust_brightness, 1.0, self.brightness),
            (vision.adjust_contrast, 1.0, self.contrast),
            (vision.adjust_saturation, 1.0, self.saturation),
            (vision.adjust_hue, 0.0, self.hue),
        )
        for position in random.permutation(len(changes)):
            adjust, neutral, strength = changes[position]
            if strength:
                least = max(neutral - strength, 0.0) if neutral else -strength
                image = adjust(image, random.uniform(least, neutral + strength))
        return image


class TrainingTransform:
    """Random scale, horizontal flip, crop and photometric changes; image and labels stay on each other.

    What is drawn is a function of the given seed numbers alone, in any process and any order. A crop is cut out of the
    image before it is scaled: its window is of a whole number of pixels, crop / scale rounded, and is resized to the
    crop. Where the image is smaller than the window, it lies anywhere in the crop, and the rest is padding: grey in the
    image and ignored in the labels. Photometric changes come last, of what is not padding.

    How the entries of a sample are resized:

    - `image`, float (3, H, W) in [0, 1]: bilinear, antialiased.
    - `label`, integers (H, W) with IGNORE_INDEX: the nearest pixel.
    - `votes`, integers (R, H, W) with IGNORE_INDEX: the nearest pixel. With a `scale_range`, a sample without a
      `soft_label` gets one of the same votes: each pixel's distribution, resized as below.
    - `soft_label`, float (C, H, W), a distribution in each pixel, or zeros where it is ignored: each map as the image,
      antialiased too, so that the label of a pixel averages over the same part of the scene as its colour, and no thin
      structure is lost between the pixels. Only pixels that are not ignored enter the average; one whose ignored
      neighbours have more than half of the weight is ignored.

    Without a scale range, votes and soft labels keep their values. A sample with votes gets `annotator`, int64 (), at
    random one of those who have a vote anywhere in the image (in the crop they may have none), or of all R if nobody
    has. Other entries stay as they are; ones of the label's height and width are refused, because they would not fit
    any more.

    Args:
        crop: Height and width; None keeps the whole image.
        scale_range: Least and largest factor on height and width, drawn uniformly.
        flip: Probability of mirroring left and right.
        photometric: Changes of the image's colours and sharpness; None makes none.
        num_classes: C of the distributions made of votes; needed for votes with a scale range only.

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> transform = TrainingTransform((4, 6), scale_range=(0.5, 2.0))
        >>> sample = {"image": torch.rand(3, 5, 5), "label": torch.zeros(5, 5, dtype=torch.long)}
        >>> first, again = (transform(sample, seed=(0, 1, 2)) for _ in range(2))
        >>> first["image"].shape, torch.equal(first["image"], again["image"])
        (torch.Size([3, 4, 6]), True)
    """

    def __init__(
        self,
        crop: tuple[int, int] | None,
        *,
        scale_range: tuple[float, float] = (1.0, 1.0),
        flip: float = 0.5,
        photometric: PhotometricSettings | None = None,
        num_classes: int | None = None,
    ) -> None:
        """See the class."""
        if crop is not None and min(crop) < 1:
            raise InputError(f"crop is {min(crop)}, but must be at least 1.")
        _check_range("scale_range", scale_range)
        if not 0 <= flip <= 1:
            raise InputError(f"flip is {flip}, but must be a probability.")
        self.crop, self.scale_range, self.flip = crop, scale_range, flip
        self.photometric, self.num_classes = photometric or PhotometricSettings(), num_classes
        # Here and not where they are made: a config's parser would hide the reason.
        self.photometric.check()

    @property
    def deterministic(self) -> bool:
        """Whether images and labels stay as they are in every epoch: no crop, scale, flip or photometric change."""
        return self.crop is None and not self._scales and self.flip == 0 and self.photometric.neutral

    @property
    def _scales(self) -> bool:
        return tuple(self.scale_range) != (1.0, 1.0)

    def __call__(self, sample: dict[str, Tensor], seed: Sequence[int]) -> dict[str, Tensor]:
        """Transform a sample with non-negative seed numbers, such as (seed, epoch, image).

        Raises:
            ValueError: If an entry's height and width are not the label's, or an entry that is none of the above has
                them; or if votes are to be scaled and there is no `num_classes`, or are outside it.
        """
        _check_pixels(sample)
        random = np.random.default_rng(tuple(seed))
        others = {name: value for name, value in sample.items() if name not in _PADDING}
        if "votes" in sample:
            others["annotator"] = _draw_annotator(random, sample["votes"])
        height, width = sample["label"].shape
        scale = random.uniform(*self.scale_range)
        rows = _draw_window(random, height, self.crop and self.crop[0], scale)
        columns = _draw_window(random, width, self.crop and self.crop[1], scale)
        flipped = random.random() < self.flip

        pixels = {name: value[..., rows.kept, columns.kept] for name, value in sample.items() if name in _PADDING}
        if self._scales:
            pixels = self._resize(pixels, (rows.size, columns.size))
        if flipped:
            pixels = {name: value.flip(-1) for name, value in pixels.items()}
        pixels["image"] = self.photometric.change(pixels["image"], random)
        padding = (*columns.padding, *rows.padding)
        return others | {name: F.pad(value, padding, value=_PADDING[name]) for name, value in pixels.items()}

    def _resize(self, pixels: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        resized = {name: _nearest(value, size) for name, value in pixels.items() if name in ("label", "votes")}
        resized["image"] = _bilinear(pixels["image"], size)
        soft_label = pixels.get("soft_label")
        if soft_label is None and "votes" in pixels:
            soft_label = self._distribution(pixels["votes"])
        if soft_label is not None:
            resized["soft_label"] = _resize_distribution(soft_label, size)
        return resized

    def _distribution(self, votes: Tensor) -> Tensor:
        if self.num_classes is None:
            raise ValueError("num_classes: expected the number of classes of the votes that are to be scaled, got None")
        return dense(RaterLabel(votes[None]), self.num_classes, IGNORE_INDEX)[0][0]


@dataclass(frozen=True)
class _Window:
    """One axis of a crop."""

    kept: slice
    """The pixels of the image."""
    size: int
    """What they are resized to."""
    padding: tuple[int, int]
    """Before and behind them."""


def _draw_annotator(random: np.random.Generator, votes: Tensor) -> Tensor:
    labelled = (votes != IGNORE_INDEX).flatten(1).any(1)
    candidates = (labelled if labelled.any() else torch.ones_like(labelled)).nonzero().flatten()
    return candidates[random.integers(len(candidates))]


def _draw_window(random: np.random.Generator, length: int, crop: int | None, scale: float) -> _Window:
    if crop is None:
        return _Window(slice(0, length), max(1, round(length * scale)), (0, 0))
    wanted = max(1, round(crop / scale))
    start = int(random.integers(max(length - wanted, 0) + 1))
    size = crop if wanted <= length else min(crop, max(1, round(length * scale)))
    before = int(random.integers(crop - size + 1))
    return _Window(slice(start, start + wanted), size, (before, crop - size - before))


def _nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ids (..., H, W); float32 holds ids below 2**24 exactly."""
    stacked = ids.reshape(1, -1, *ids.shape[-2:]).float()
    return F.interpolate(stacked, size, mode="nearest-exact").to(ids.dtype).reshape(*ids.shape[:-2], *size)


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size, mode="bilinear", antialias=True)[0]


def _resize_distribution(soft_label: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (C, H, W): the average over the pixels that are not zero, zero where they have less than half the weight.

    A pixel's sum is 1 or 0, so the sum of the resized maps is the weight of the pixels that are not ignored.
    """
    resized = _bilinear(soft_label, size)
    weight = resized.sum(0, keepdim=True)
    return torch.where(weight >= _HALF, resized / weight, 0.0)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Blur along each axis in turn: one kernel over both would cost several times as much."""
    # The image is mirrored at its edges, so the kernel reaches no further than its size.
    across, down = (2 * min(round(3 * sigma), side - 1) + 1 for side in (image.shape[2], image.shape[1]))
    for kernel in ([across, 1], [1, down]):
        image = vision.gaussian_blur(image, kernel, [sigma, sigma])
    return image


def _check_range(name: str, limits: tuple[float, float]) -> None:
    least, largest = limits
    if not 0 < least <= largest < math.inf:
        raise InputError(f"{name} is [{least}, {largest}], but must be two numbers above 0, the smaller one first.")


def mix_seed(*numbers: int) -> int:
    """Make one 64-bit seed of several non-negative numbers, such as (seed, epoch, image)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def collate_padded(samples: Sequence[dict[str, Tensor]], multiple: int = 1) -> dict[str, Tensor]:
    """Stack samples into a batch; smaller images are padded at the right and the bottom, their labels with ignore.

    Args:
        samples: Dictionaries with the same names; `image` (3, H, W), `label` (H, W), `votes` (R, H, W) and `soft_label`
            (C, H, W), which is padded with zeros, may differ in height and width.
        multiple: Height and width of the batch are rounded up to a multiple of this.

    Raises:
        ValueError: If an entry's height and width are not the label's, or another entry has them.
    """
    for sample in samples:
        _check_pixels(sample)
    sizes = torch.tensor([sample["label"].shape for sample in samples])
    height, width = (-(-int(side) // multiple) * multiple for side in sizes.amax(0))

    def padded(sample: dict[str, Tensor], name: str) -> Tensor:
        if name not in _PADDING:
            return sample[name]
        value = sample[name]
        return F.pad(value, (0, width - value.shape[-1], 0, height - value.shape[-2]), value=_PADDING[name])

    return {name: torch.stack([padded(sample, name) for sample in samples]) for name in samples[0]}


def _check_pixels(sample: dict[str, Tensor]) -> None:
    size = sample["label"].shape[-2:]
    for name, value in sample.items():
        if name in _PADDING and value.shape[-2:] != size:
            raise ValueError(
                f"{name}: expected the label's height and width {tuple(size)}, got shape {tuple(value.shape)}"
            )
        if name not in _PADDING and value.shape[-2:] == size:
            raise ValueError(
                f"{name}: expected only {', '.join(_PADDING)} to have a value for each pixel, got shape "
                f"{tuple(value.shape)} beside a label of height and width {tuple(size)}; leave this entry out of the "
                "samples"
            )

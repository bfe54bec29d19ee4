"""What happens to an image and its label between the file and the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

IGNORE_INDEX = -100
"""The id of ignored pixels in every batch, whatever a data set's files use; the default of all losses and metrics."""

PADDING_GREY = 0.5
"""Padding of images in [0, 1]: close to zero after any of the usual normalisations."""


class TrainingTransform:
    """Random horizontal flip and random crop, the same for the image and its label.

    What is drawn depends on the given seed numbers alone, not on the process or the order of the images. Other entries
    stay as they are; ones of the label's height and width are refused, because they would not fit any more.

    Args:
        crop: Height and width. Where the image is smaller it is padded, and the padding's label is ignored.
        flip: Probability of mirroring left and right.

    Example:
        >>> transform = TrainingTransform((4, 6))
        >>> sample = {"image": torch.rand(3, 5, 5), "label": torch.zeros(5, 5, dtype=torch.long)}
        >>> first, again = (transform(sample, seed=(0, 1, 2)) for _ in range(2))
        >>> first["image"].shape, torch.equal(first["image"], again["image"])
        (torch.Size([3, 4, 6]), True)
    """

    def __init__(self, crop: tuple[int, int], *, flip: float = 0.5) -> None:
        """See the class."""
        fill = {tv_tensors.Image: PADDING_GREY, tv_tensors.Mask: IGNORE_INDEX}
        self._steps = v2.Compose(
            [
                v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(flip),
                v2.ToPureTensor(),
            ]
        )

    def __call__(self, sample: dict[str, Tensor], seed: Sequence[int]) -> dict[str, Tensor]:
        """Transform `image`, float (3, H, W) in [0, 1], and `label`, (H, W) with IGNORE_INDEX.

        Raises:
            ValueError: If another entry has the label's height and width.
        """
        _refuse_other_pixels(sample)
        image, label = tv_tensors.Image(sample["image"]), tv_tensors.Mask(sample["label"])
        # torchvision draws from torch's global generator: seed it for this image only.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(*seed))
            image, label = self._steps(image, label)
        return {**sample, "image": image, "label": label}


def mix_seed(*numbers: int) -> int:
    """Make one 64-bit seed of several non-negative numbers, such as (seed, epoch, image)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def collate_padded(samples: Sequence[dict[str, Tensor]], multiple: int = 1) -> dict[str, Tensor]:
    """Stack samples into a batch; smaller images are padded at the right and the bottom, their labels with ignore.

    Args:
        samples: Dictionaries with the same names; `image` (3, H, W) and `label` (H, W) may differ in size.
        multiple: Height and width of the batch are rounded up to a multiple of this.

    Raises:
        ValueError: If another entry has the label's height and width.
    """
    for sample in samples:
        _refuse_other_pixels({name: value for name, value in sample.items() if name != "votes"})
    sizes = torch.tensor([sample["label"].shape for sample in samples])
    height, width = (-(-int(side) // multiple) * multiple for side in sizes.amax(0))
    padding = {"image": PADDING_GREY, "label": IGNORE_INDEX, "votes": IGNORE_INDEX}

    def padded(sample: dict[str, Tensor], name: str) -> Tensor:
        if name not in padding:
            return sample[name]
        value = sample[name]
        return functional.pad(value, (0, width - value.shape[-1], 0, height - value.shape[-2]), value=padding[name])

    return {name: torch.stack([padded(sample, name) for sample in samples]) for name in samples[0]}


def _refuse_other_pixels(sample: dict[str, Tensor]) -> None:
    size = sample["label"].shape[-2:]
    for name, value in sample.items():
        if name not in ("image", "label") and value.shape[-2:] == size:
            raise ValueError(
                f"{name}: expected only image and label to have a value for each pixel, got shape {tuple(value.shape)} "
                f"beside a label of height and width {tuple(size)}; leave this entry out of the samples"
            )

"""Which image comes when, on which device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data.distributed import DistributedSampler

from softjaccard.data.transforms import mix_seed


class EpochSampler(DistributedSampler[tuple[int, ...]]):
    """A new order for each epoch, a function of (seed, epoch); yields (epoch, index).

    The epoch travels with the index, so that augmentation can depend on it in any worker process. Each device has as
    many images as the others; a few at the end of the order are left out where they cannot be shared equally.
    """

    def __init__(self, length: int, seed: int, *, rank: int = 0, ranks: int = 1) -> None:
        """See the class."""
        super().__init__(range(length), num_replicas=ranks, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self._first_epoch, self._had = 0, 0

    def start_at(self, epoch: int, images: int) -> None:
        """Begin with an epoch of which this device has had so many images already."""
        self._first_epoch, self._had = epoch, images
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Go through this device's images once, without those it has had."""
        order = self.order(len(self.dataset))  # type: ignore[arg-type]
        for position in self.positions():
            yield self.epoch, order[position]

    def order(self, length: int, *stream: int) -> list[int]:
        """Return this epoch's order of so many images, one of several if further seed numbers are given."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch, *stream))
        return torch.randperm(length, generator=generator).tolist()

    def positions(self) -> range:
        """Return this device's positions in the order, without those it has had."""
        had = self._had if self.epoch == self._first_epoch else 0
        return range(self.rank, self.total_size, self.num_replicas)[had:]


class OrderedSampler(DistributedSampler[int]):
    """Every image once, in order, shared between devices.

    PyTorch's own, which Lightning would put in, repeats images to give all devices as many, and so counts them twice.
    """

    def __init__(self, length: int, *, rank: int = 0, ranks: int = 1) -> None:
        """See the class."""
        super().__init__(range(length), num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.share = range(rank, length, ranks)

    def __len__(self) -> int:
        """Return the number of this device's images."""
        return len(self.share)

    def __iter__(self) -> Iterator[int]:
        """Go through this device's images once."""
        return iter(self.share)

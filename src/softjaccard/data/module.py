"""From data sets to batches: the Lightning data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from softjaccard.data.transforms import IGNORE_INDEX, PhotometricSettings, TrainingTransform, collate_padded, mix_seed
from softjaccard.errors import InputError

Batch = dict[str, Tensor]
Split = Literal["train", "val", "test"]


class SegmentationDataset(Protocol):
    """A data set of dictionaries with `image`, float (3, H, W) in [0, 1], and `label`, integers (H, W)."""

    classes: tuple[str, ...]
    num_classes: int
    ignore_index: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...


class EpochSampler(DistributedSampler[tuple[int, int]]):
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

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Go through this device's images once, without those it has had."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        had = self._had if self.epoch == self._first_epoch else 0
        for index in order[self.rank : self.total_size : self.num_replicas][had:]:
            yield self.epoch, index


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


class _TrainingImages(Dataset[Batch]):
    """Augmented samples of a data set, fetched by (epoch, index)."""

    def __init__(self, dataset: SegmentationDataset, transform: TrainingTransform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        return self.transform(_with_common_ignore(self.dataset, index), (self.seed, epoch, index))


class _EvaluationImages(Dataset[Batch]):
    """Samples of a data set as they are."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        sample = _with_common_ignore(self.dataset, index)
        return {**sample, "index": torch.tensor(index), "size": torch.tensor(sample["label"].shape)}


def _with_common_ignore(dataset: SegmentationDataset, index: int) -> Batch:
    sample = dataset[index]
    ids = {name: sample[name].long() for name in ("label", "votes") if name in sample}
    return sample | {
        name: value.masked_fill(value == dataset.ignore_index, IGNORE_INDEX) for name, value in ids.items()
    }


class SegmentationData(LightningDataModule, ABC):
    """Batches for training, validation and test; a data set's own module says how its splits are opened.

    A batch is a dictionary of plain tensors: `image` float32 (B, 3, H, W) in [0, 1]; `label` int64 (B, H, W) with -100
    where nothing counts, whatever id the files use; and what else the data set gives. Validation and test batches have
    `index`, int64 (B,), the positions in the split, and `size`, int64 (B, 2), the images' heights and widths without
    padding. Training images are shuffled and augmented as a function of (seed, epoch, image), see
    :class:`~softjaccard.data.transforms.TrainingTransform`; an incomplete last batch is left out. Validation and test
    images come whole. All are padded to `pad_multiple`.

    Args:
        batch_size: Images in a training batch.
        evaluation_batch_size: Images in a validation or test batch.
        crop: Height and width of the training crops; None takes whole images.
        scale_range: Least and largest random factor on a training image's height and width.
        flip: Probability of mirroring a training image.
        photometric: Random changes of a training image's colours and sharpness; None makes none.
        pad_multiple: Batches are padded to a height and width that are multiples of this, the encoder's stride.
        workers: Processes that read images; 0 reads in the main process.
        seed: Of order and augmentation.

    Raises:
        InputError: If a number is out of its range.
    """

    def __init__(
        self,
        *,
        batch_size: int = 8,
        evaluation_batch_size: int = 8,
        crop: tuple[int, int] | None = (512, 512),
        scale_range: tuple[float, float] = (1.0, 1.0),
        flip: float = 0.5,
        photometric: PhotometricSettings | None = None,
        pad_multiple: int = 32,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("evaluation_batch_size", evaluation_batch_size, 1),
            ("pad_multiple", pad_multiple, 1),
            ("workers", workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}, but must be at least {least}.")
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.crop, self.scale_range, self.flip, self.photometric = crop, scale_range, flip, photometric
        self.pad_multiple, self.workers, self.seed = pad_multiple, workers, seed
        self.training_transform()  # raises where a setting of the augmentation is wrong
        self.datasets: dict[str, SegmentationDataset] = {}
        self._reached = {"epoch": 0, "batches": 0}

    @abstractmethod
    def dataset(self, split: Split) -> SegmentationDataset:
        """Open one split."""

    def setup(self, stage: str) -> None:
        """Open and check the splits of a stage, each once."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in splits.get(stage, ()):
            if split not in self.datasets:
                self.datasets[split] = self.dataset(split)

    def training_transform(self, num_classes: int | None = None) -> TrainingTransform:
        """Return the augmentation of the training images; scaled votes need the number of classes."""
        return TrainingTransform(
            self.crop,
            scale_range=self.scale_range,
            flip=self.flip,
            photometric=self.photometric,
            num_classes=num_classes,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled, augmented batches."""
        dataset = self.datasets["train"]
        sampler = EpochSampler(len(dataset), self.seed, **self._place())
        sampler.start_at(self._reached["epoch"], self._reached["batches"] * self.batch_size)
        if len(sampler) < self.batch_size:
            raise InputError(
                f"The training split has {len(sampler)} images for each device, fewer than batch_size "
                f"{self.batch_size}."
            )
        return self._loader(
            _TrainingImages(dataset, self.training_transform(dataset.num_classes), self.seed),
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation images in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test images in order."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, int]:
        """Return how far training has come: the epoch, and the batches that each device has had of it."""
        loop: Any = self.trainer.fit_loop  # type: ignore[union-attr]
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
        within = epochs.started > epochs.processed
        return {"epoch": epochs.processed, "batches": batches.completed if within else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let training go on there; called before its loader is made."""
        self._reached = state_dict

    def evaluation_batch(self, split: Split, indices: Sequence[int]) -> Batch:
        """Return some of the images of a split as a batch."""
        images = _EvaluationImages(self.datasets[split])
        return collate_padded([images[index] for index in indices], self.pad_multiple)

    def _evaluation_loader(self, split: Split) -> DataLoader[Batch]:
        dataset = self.datasets[split]
        sampler = OrderedSampler(len(dataset), **self._place())
        if len(dataset) < sampler.num_replicas:
            raise InputError(
                f"The {split} split has {len(dataset)} images, fewer than the {sampler.num_replicas} devices: set "
                "trainer.devices to fewer."
            )
        return self._loader(_EvaluationImages(dataset), batch_size=self.evaluation_batch_size, sampler=sampler)

    def _place(self) -> dict[str, int]:
        """Return which of how many devices this process is for; the only one where there is no trainer."""
        return {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size} if self.trainer else {}

    def _loader(self, dataset: Dataset[Batch], **settings: Any) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=partial(collate_padded, multiple=self.pad_multiple),
            # Each start of a loader draws a seed, not from the global generator: a resumed run has more starts.
            generator=torch.Generator().manual_seed(self.seed),
            **settings,
        )

"""From data sets to batches: the Lightning data module."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from softjaccard.data.samplers import EpochSampler, OrderedSampler
from softjaccard.data.transforms import IGNORE_INDEX, PhotometricSettings, TrainingTransform, collate_padded
from softjaccard.data.unlabelled import (
    STRONG_VIEWS,
    Partition,
    PartitionSampler,
    PartlyLabelledImages,
    UnlabelledImages,
    UnlabelledViews,
    choose_labelled,
    collate_views,
    partition,
)
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


class _TrainingImages(Dataset[Batch]):
    """Augmented samples of a data set, fetched by (epoch, index, and further seed numbers)."""

    def __init__(self, dataset: SegmentationDataset, transform: TrainingTransform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, ...]) -> Batch:
        return self.transform(_with_common_ignore(self.dataset, key[1]), (self.seed, *key))


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

    With `labelled`, the entries above are of that part of the training images. With it, or with a folder of images as
    `unlabelled`, a batch has as many unlabelled images, for a model with an attribute `strong_views`, V; an epoch is
    one pass over these, in which labelled images repeat. Of them a batch has, drawn as
    :class:`~softjaccard.data.unlabelled.UnlabelledViews` says:

    - `weak_image`: float32 (B, 3, H, W), scaled, cropped and flipped as labelled images are, without photometric
      changes; and `weak_valid`, boolean (B, H, W), false where it is padding.
    - `partner_image`, `partner_valid`: the same of other unlabelled images, parts of which are pasted.
    - `strong_image`: float32 (B, V, 3, H, W), V strong views, each with the pixels of its partner inside its box.
    - `box`: boolean (B, V, H, W), where these are.

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
        labelled: Use the labels of a part of the training images only: its share, such as 0.125, or the file of a
            list of them, by ids or image files, one a line. A run keeps such a list of ids in its labelled.txt. Null
            uses all.
        unlabelled: The images to use without labels: a folder of images, which need no masks; or the file of a list of
            training images, as above. Null takes all training images that `labelled` leaves.
        labelled_seed: Of what is drawn for a share; the run's own seed does not change it.

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
        labelled: float | str | None = None,
        unlabelled: str | None = None,
        labelled_seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("evaluation_batch_size", evaluation_batch_size, 1),
            ("pad_multiple", pad_multiple, 1),
            ("workers", workers, 0),
            ("seed", seed, 0),
            ("labelled_seed", labelled_seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}, but must be at least {least}.")
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.crop, self.scale_range, self.flip, self.photometric = crop, scale_range, flip, photometric
        self.pad_multiple, self.workers, self.seed = pad_multiple, workers, seed
        self.labelled, self.unlabelled, self.labelled_seed = labelled, unlabelled, labelled_seed
        self.partition: Partition | None = None
        self._unlabelled_images: UnlabelledImages | None = None
        self.training_transform()  # raises where a setting of the augmentation is wrong
        self.datasets: dict[str, SegmentationDataset] = {}
        self._reached: dict[str, Any] = {"epoch": 0, "batches": 0}

    @abstractmethod
    def dataset(self, split: Split) -> SegmentationDataset:
        """Open one split."""

    def open_unlabelled(self, folder: Path) -> UnlabelledImages:
        """Open a folder of images without labels, as they are; when this is called, the training split is open."""
        return UnlabelledImages(folder)

    def setup(self, stage: str) -> None:
        """Open and check the splits of a stage, each once."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in splits.get(stage, ()):
            if split not in self.datasets:
                self.datasets[split] = self.dataset(split)
        if "train" in self.datasets and self.partition is None:
            self.partition = self._partition(self.datasets["train"])

    def _partition(self, train: SegmentationDataset) -> Partition | None:
        """Return which images are used with and without labels; None for all training images with labels alone."""
        folder = self._unlabelled_folder()
        if folder is None:
            if self.labelled is None:
                return None
            return partition(
                self._training_ids(), self.labelled, self.unlabelled, self.labelled_seed, self._training_files()
            )
        self._unlabelled_images = self.open_unlabelled(folder)
        labelled: Sequence[int] = range(len(train))
        if self.labelled is not None:
            labelled = choose_labelled(
                self._training_ids(), self.labelled, self.labelled_seed, files=self._training_files()
            )
        return Partition(tuple(labelled), tuple(range(len(self._unlabelled_images))))

    def _training_ids(self) -> Sequence[str]:
        ids: Sequence[str] | None = getattr(self.datasets["train"], "ids", None)
        if ids is None:
            raise InputError(f"data.labelled: images of {type(self).__name__} have no ids to choose by.")
        return ids

    def _training_files(self) -> Mapping[str, Path]:
        """Return the files of training images by their ids; none where data are not files."""
        files: Mapping[str, Path] = getattr(self.datasets["train"], "image_files", {})
        return files

    def _unlabelled_folder(self) -> Path | None:
        """Return the folder of images without labels; None if there is a list or nothing."""
        if self.unlabelled is None:
            return None
        path = Path(self.unlabelled).expanduser()
        if path.is_dir():
            return path
        if not path.is_file():
            raise InputError(
                f"data.unlabelled: there is no folder or file {path}; expected a folder of images, or the file of a "
                "list of training images, one a line."
            )
        if self.labelled is None:
            raise InputError(
                f"data.unlabelled is {path}, a list of training images, but data.labelled is null: set that to a share "
                "or a list of others, or data.unlabelled to a folder of images."
            )
        return None

    def labelled_ids(self) -> list[str] | None:
        """Return the ids of the training images whose labels are used; None if all are."""
        if self.labelled is None or self.partition is None:
            return None
        ids = self._training_ids()
        return [ids[index] for index in self.partition.labelled]

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
        samples = _TrainingImages(dataset, self.training_transform(dataset.num_classes), self.seed)
        if self.partition is not None:
            return self._partly_labelled_loader(dataset, samples, self.partition)
        return self._training_loader(samples, EpochSampler(len(dataset), self.seed, **self._place()))

    def _partly_labelled_loader(
        self, dataset: SegmentationDataset, samples: _TrainingImages, images: Partition
    ) -> DataLoader[Any]:
        sampler = PartitionSampler(images, self.seed, **self._place())
        needed = self.batch_size * sampler.num_replicas
        if len(images.labelled) < needed:
            raise InputError(
                f"data.labelled: {len(images.labelled)} training images have labels, fewer than the {needed} of a "
                "batch. Set data.batch_size to fewer, or label more."
            )
        views = None
        strong = STRONG_VIEWS if self.trainer is None else getattr(self.trainer.lightning_module, "strong_views", 0)
        if not strong and self._unlabelled_images is not None:
            rank_zero_warn(
                "This model does not train on the images in data.unlabelled, which only set how long an epoch is."
            )
        if strong:
            if self.crop is None:
                raise InputError("data.crop is null, but unlabelled images are trained on in crops of one size.")
            geometry = TrainingTransform(self.crop, scale_range=self.scale_range, flip=self.flip)
            others = dataset if self._unlabelled_images is None else self._unlabelled_images
            views = UnlabelledViews(others, geometry, self.seed, strong)
        return self._training_loader(PartlyLabelledImages(samples, views), sampler, collate=collate_views)

    def _training_loader(
        self, samples: Dataset[Any], sampler: EpochSampler, collate: Callable[..., Batch] = collate_padded
    ) -> DataLoader[Any]:
        sampler.start_at(self._reached["epoch"], self._reached["batches"] * self.batch_size)
        if len(sampler) < self.batch_size:
            kind = "training split" if self.partition is None else "unlabelled part of the training split"
            if self._unlabelled_images is not None:
                kind = f"folder of data.unlabelled, {self.unlabelled},"
            raise InputError(
                f"The {kind} has {len(sampler)} images for each device, fewer than batch_size {self.batch_size}. Set "
                "data.batch_size to fewer."
            )
        return self._loader(samples, collate, batch_size=self.batch_size, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation images in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test images in order."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Return of which images training is, and how far it has come: epoch, and batches of it on each device."""
        loop: Any = self.trainer.fit_loop  # type: ignore[union-attr]
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
        within = epochs.started > epochs.processed
        return {
            "epoch": epochs.processed,
            "batches": batches.completed if within else 0,
            "images": self._training_images(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let training go on there; called before its loader is made.

        Raises:
            InputError: If the training images are not those that training began with.
        """
        if state_dict["images"] != self._training_images():
            raise InputError(
                "data: the training images, or those of them that have labels, are not those that training began with. "
                "Put files and lists back as they were, or start another run."
            )
        self._reached = state_dict

    def _training_images(self) -> str:
        """Return a fingerprint of which images there are, and which of them with and without labels."""
        dataset, others = self.datasets["train"], self._unlabelled_images
        ids = getattr(dataset, "ids", len(dataset))
        paths = None if others is None else [str(path.relative_to(others.folder)) for path in others.paths]
        return hashlib.sha256(repr((ids, paths, self.partition)).encode()).hexdigest()

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

    def _loader(
        self, dataset: Dataset[Any], collate: Callable[..., Batch] = collate_padded, **settings: Any
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=partial(collate, multiple=self.pad_multiple),
            # Each start of a loader draws a seed, not from the global generator: a resumed run has more starts.
            generator=torch.Generator().manual_seed(self.seed),
            **settings,
        )

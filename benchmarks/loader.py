"""How fast training images come: the CamVid pipeline, on drawn scenes in CamVid's layout."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.measure import Step
from softjaccard.data.camvid import CamVid, CamVidData
from softjaccard.data.synthetic import SyntheticScenes
from softjaccard.data.transforms import TrainingTransform, collate_padded
from softjaccard.data.unlabelled import STRONG

_IMAGES, _BATCH, _ROUNDS = 16, 8, 7


def draw_folder(root: Path, size: tuple[int, int]) -> None:
    """Write scenes as CamVid's training split."""
    scenes = SyntheticScenes(_IMAGES, size, raters=1)
    names = [f"scene{number}" for number in range(_IMAGES)]
    for folder in ("images", "annotations"):
        (root / folder / "train").mkdir(parents=True)
    for number, name in enumerate(names):
        scene = scenes[number]
        pixels = (scene["image"] * 255).round().byte().permute(1, 2, 0).numpy()
        ids = scene["label"].masked_fill(scene["label"] == scenes.ignore_index, CamVid.ignore_index)
        Image.fromarray(pixels).save(root / "images" / "train" / f"{name}.jpg", quality=95)
        Image.fromarray(ids.numpy().astype(np.uint8)).save(root / "annotations" / "train" / f"{name}.png")
    (root / "train.txt").write_text("\n".join(names))


@dataclass(frozen=True)
class LoaderCase:
    """Training batches at half resolution, with crops of 160 x 224, random scales from 0.5 to 2 and changed colours."""

    size: tuple[int, int]
    """Height and width of the files."""
    workers: int
    cache: bool

    @property
    def name(self) -> str:
        """What ``--cases`` is matched against."""
        kept = "cached" if self.cache else "decoded"
        return f"loader/CamVid/{'x'.join(map(str, self.size))}/workers{self.workers}/{kept}"

    def measure(self, _: torch.device, budget: float) -> dict[str, object]:
        """Time of an image in epochs after the first, and the processor's time: in all, and of each step.

        The processor's time is this process's, so it is that of the whole pipeline without workers only.
        """
        torch.set_num_threads(1)  # as in a worker
        with TemporaryDirectory() as folder:
            draw_folder(Path(folder), self.size)
            data = CamVidData(
                folder,
                scale=0.5,
                cache=self.cache,
                crop=(160, 224),
                scale_range=(0.5, 2.0),
                photometric=STRONG,
                batch_size=_BATCH,
                workers=self.workers,
            )
            dataset = data.datasets["train"] = data.dataset("train")
            for index in range(len(dataset)):  # workers begin with what is decoded here
                dataset[index]
            seconds, processor_seconds = _epochs(data, budget)
            return {
                "seconds": seconds,
                "processor_seconds": None if self.workers else processor_seconds,
                "step_seconds": _steps(data),
            }


def _epochs(data: CamVidData, budget: float) -> tuple[float, float]:
    """Time, and this process's processor time, for each image."""
    loader = data.train_dataloader()

    def epoch() -> int:
        return sum(len(batch["image"]) for batch in loader)

    epoch()  # starts the workers
    images, begin, begin_processor = 0, time.perf_counter(), time.process_time()
    while not images or time.perf_counter() < begin + budget:
        images += epoch()
    return (time.perf_counter() - begin) / images, (time.process_time() - begin_processor) / images


def _steps(data: CamVidData) -> dict[str, float]:
    """The processor's time of each step for each image; a busy machine changes it little."""

    def read() -> list[dict[str, Tensor]]:
        return [data.datasets["train"][index] for index in range(_IMAGES)]

    samples = read()
    geometry = TrainingTransform(data.crop, scale_range=data.scale_range)

    def cut() -> list[dict[str, Tensor]]:
        return [geometry(sample, (index,)) for index, sample in enumerate(samples)]

    crops = cut()
    steps: dict[str, Step] = {
        "read": read,
        "geometry": cut,
        "photometric": lambda: [
            STRONG.change(crop["image"], np.random.default_rng(index)) for index, crop in enumerate(crops)
        ],
        "collate": lambda: [collate_padded(crops[start : start + _BATCH]) for start in range(0, _IMAGES, _BATCH)],
    }
    return {name: statistics.median(_processor_seconds(step) for _ in range(_ROUNDS)) for name, step in steps.items()}


def _processor_seconds(step: Step) -> float:
    begin = time.process_time()
    step()
    return (time.process_time() - begin) / _IMAGES

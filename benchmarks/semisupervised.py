"""A training step with unlabelled images: forward, loss and backward of each method, without loader and optimiser."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Step, median_seconds, peak_bytes
from softjaccard.data.unlabelled import STRONG_VIEWS, draw_box

_CLASSES = 11
#: What is measured, by the names of the recipes; the labelled part alone is what all are compared with.
BASELINE = "supervised-only"
METHODS = (BASELINE, "fixmatch", "unimatch", "jml-ssl", "jml-ssl with average")


def _model(method: str, device: torch.device) -> Any:
    from softjaccard.training import SemiSupervised, SupervisedSegmentation
    from softjaccard.training.semisupervised import FixMatch, JMLSemiSupervised, UniMatch

    build = {
        BASELINE: SupervisedSegmentation,
        "fixmatch": partial(SemiSupervised, FixMatch()),
        "unimatch": partial(SemiSupervised, UniMatch()),
        "jml-ssl": partial(SemiSupervised, JMLSemiSupervised()),
        "jml-ssl with average": partial(SemiSupervised, JMLSemiSupervised(average_decay=0.99)),
    }[method]
    torch.manual_seed(0)
    return build(num_classes=_CLASSES, channels_last=True).to(device).train()


def _batch(images: int, size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    random = np.random.default_rng(0)
    boxes = [torch.stack([draw_box(size, random) for _ in range(STRONG_VIEWS)]) for _ in range(images)]
    batch = {
        "label": torch.randint(_CLASSES, (images, *size), generator=generator),
        "strong_image": torch.rand(images, STRONG_VIEWS, 3, *size, generator=generator),
        "box": torch.stack(boxes),
    }
    batch |= {
        name: torch.rand(images, 3, *size, generator=generator) for name in ("image", "weak_image", "partner_image")
    }
    batch |= {name: torch.ones(images, *size, dtype=torch.bool) for name in ("weak_valid", "partner_valid")}
    return {name: value.to(device) for name, value in batch.items()}


def _step(method: str, batch: dict[str, Tensor], device: torch.device) -> Step:
    model = _model(method, device)
    views = getattr(model, "strong_views", 0)
    batch = batch | {name: batch[name][:, :views] for name in ("strong_image", "box")}

    def step() -> None:
        loss, _ = model.loss_and_output(batch)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


@dataclass(frozen=True)
class TrainingCase:
    """DeepLabV3+ with EfficientNet-Lite0 and 11 classes, as the CamVid recipe has them."""

    training: str
    images: int = 8
    """Labelled ones in a batch; there are as many unlabelled ones."""
    size: tuple[int, int] = (160, 224)

    @property
    def name(self) -> str:
        """What ``--cases`` is matched against."""
        return f"semisupervised/{self.training}/{self.images}x{'x'.join(map(str, self.size))}"

    def measure(self, device: torch.device, budget: float) -> dict[str, object]:
        """Time and memory of a step, beside the step of labelled images alone."""
        warnings.filterwarnings("ignore", ".*self.trainer. reference.*")  # there is nothing to log to
        batch = _batch(self.images, self.size, device)
        steps = {name: _step(name, batch, device) for name in dict.fromkeys((self.training, BASELINE))}
        for step in steps.values():
            step()  # imports, thread pools
        peak = peak_bytes(steps[self.training], device)
        times = median_seconds(steps, device, budget)
        seconds = times[self.training]
        return {"seconds": seconds, "time_ratio": seconds / times[BASELINE], "peak_bytes": peak}

"""The command ``softjaccard demo``: three losses, one small network, labels from annotators who disagree.

It is also the shortest complete use of the library in a plain training loop; see :func:`train`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import default_collate

import softjaccard
from softjaccard.data.synthetic import SyntheticScenes
from softjaccard.errors import InputError
from softjaccard.evaluation.figures import draw_comparison
from softjaccard.files import write_text
from softjaccard.metrics import CalibrationError, FineGrainedIoU

IGNORE = SyntheticScenes.ignore_index

LOSSES: dict[str, nn.Module] = {
    "cross-entropy": softjaccard.CrossEntropyLoss(ignore_index=IGNORE),
    "soft Jaccard + CE": softjaccard.CompoundLoss(softjaccard.JaccardLoss(form="product", ignore_index=IGNORE)),
    "JML + CE": softjaccard.CompoundLoss(softjaccard.JaccardLoss(ignore_index=IGNORE)),
}


@dataclass(frozen=True)
class DemoSettings:
    """How the demo trains; all three networks alike."""

    seed: int = 0
    steps: int = 400
    batch_size: int = 12
    learning_rate: float = 3e-3
    size: int = 96
    raters: int = 5
    training_scenes: int = 384
    test_scenes: int = 96


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, as fractions by the name of the loss, and where it wrote the picture and the record."""

    scores: dict[str, dict[str, float]]
    picture: Path
    record: Path


class SmallNetwork(nn.Module):
    """A U-shaped network with 0.1 million parameters, for images whose sides divide by 8.

    Example:
        >>> SmallNetwork(num_classes=5)(torch.zeros(2, 3, 32, 48)).shape
        torch.Size([2, 5, 32, 48])
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = (16, 32, 64)) -> None:
        """See the class."""
        super().__init__()
        inner, outer = widths[1:], widths[:-1]
        self.down = nn.ModuleList(
            _block(entering, leaving, stride=2) for entering, leaving in zip((3, *outer), widths, strict=True)
        )
        self.up = nn.ModuleList(
            _block(below + beside, beside) for below, beside in zip(inner[::-1], outer[::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, C, H, W) for images (B, 3, H, W)."""
        features: list[Tensor] = []
        x = image
        for block in self.down:
            x = block(x)
            features.append(x)
        for block, beside in zip(self.up, features[-2::-1], strict=True):
            x = block(torch.cat((_enlarge(x), beside), 1))
        return _enlarge(self.head(x))


def _enlarge(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _block(entering: int, leaving: int, stride: int = 1) -> nn.Sequential:
    """Two 3 x 3 convolutions."""
    layers: list[nn.Module] = []
    for channels, step in ((entering, stride), (leaving, 1)):
        layers += [nn.Conv2d(channels, leaving, 3, step, 1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def train(
    criterion: nn.Module, scenes: dict[str, Tensor], settings: DemoSettings, report: Callable[[float], None]
) -> nn.Module:
    """Train a network on the annotators' votes with any loss of this library.

    Equal settings give the same first weights and the same batches, whatever the loss.

    Args:
        criterion: called with logits and a label.
        scenes: ``image`` (N, 3, H, W) and ``votes`` (N, R, H, W).
        settings: seed, steps and the like.
        report: called after every step with its loss.

    Returns:
        The trained network, in evaluation mode.
    """
    order = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = SmallNetwork(SyntheticScenes.num_classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        batch = torch.randint(len(scenes["image"]), (settings.batch_size,), generator=order)
        logits = network(scenes["image"][batch])
        loss = criterion(logits, softjaccard.RaterLabel(scenes["votes"][batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(loss.item())
    return network.eval()


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Return the probabilities (N, C, H, W) for images (N, 3, H, W)."""
    return torch.cat([torch.softmax(network(some), 1) for some in torch.split(images, 32)])


def evaluate(probabilities: Tensor, scenes: dict[str, Tensor]) -> dict[str, float]:
    """Compare probabilities (N, C, H, W) with ``label`` and ``soft_label`` of the scenes.

    Returns:
        Fractions over the labelled pixels: ``mIoU`` (pooled over the scenes) against the most probable class; ``ECE``
        against the true distribution, that is, confidence against the chance that an annotator agrees; ``distance``,
        the mean total variation distance to the true distribution.
    """
    label, truth = scenes["label"], scenes["soft_label"]
    labelled = label != IGNORE
    iou = FineGrainedIoU(SyntheticScenes.num_classes, ignore_index=IGNORE)
    calibration = CalibrationError(SyntheticScenes.num_classes)
    iou.update(probabilities, label)
    calibration.update(probabilities, truth, labelled)
    distance = (probabilities - truth).abs().sum(1)[labelled].mean() / 2
    return {
        "mIoU": iou.compute()["mIoU_D"].item(),
        "ECE": calibration.compute()["ECE"].item(),
        "distance": distance.item(),
    }


def run_demo(
    output: Path, seed: int = 0, steps: int | None = None, *, console: Console | None = None, **changes: Any
) -> DemoResult:
    """Train the same network with three losses, print a table, and write ``demo.png`` and ``demo.json``.

    Args:
        output: the folder to write to; made if it is not there.
        seed: of the scenes, the weights and the order of the batches.
        steps: of each training; None takes the default of :class:`DemoSettings`.
        console: where to print; None is the terminal.
        **changes: other fields of :class:`DemoSettings`.

    Returns:
        The scores, and the paths of both files.

    Raises:
        InputError: ``seed`` is negative, ``steps`` is not positive, or ``output`` is not a folder.
    """
    settings = DemoSettings(seed=seed, **changes)
    if steps is not None:
        settings = replace(settings, steps=steps)
    if seed < 0 or settings.steps < 1:
        raise InputError(f"seed must not be negative and steps must be positive, got {seed} and {settings.steps}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output: cannot make the folder {output}: {error.strerror}") from error
    console = console or Console()
    started = time.perf_counter()
    with _one_thread():
        test, networks = _train_all(settings, console)
        predictions = {name: predict(network, test["image"]) for name, network in networks.items()}
    scores = {name: evaluate(probabilities, test) for name, probabilities in predictions.items()}
    result = DemoResult(scores, output / "demo.png", output / "demo.json")
    # The richest scenes by their labels alone, so that nothing is picked for how well it went.
    classes = [len(torch.unique(label)) for label in test["label"]]
    shown = sorted(range(len(classes)), key=lambda i: -classes[i])[:4]
    draw_comparison(
        result.picture,
        test["image"][shown],
        test["label"][shown],
        test["soft_label"][shown],
        {name: probabilities[shown] for name, probabilities in predictions.items()},
        SyntheticScenes.classes,
    )
    _write_record(result, settings, time.perf_counter() - started)
    _print_table(result, console)
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Add in one order on every machine; threads gain little on so small a network, and lose much on a busy one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_all(settings: DemoSettings, console: Console) -> tuple[dict[str, Tensor], dict[str, nn.Module]]:
    """Return the held-out scenes and the trained networks by the name of their loss."""
    count = settings.training_scenes + settings.test_scenes
    source = SyntheticScenes(count, settings.size, raters=settings.raters, seed=settings.seed)
    columns = ("{task.description:<30}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        scenes = [source[i] for i in progress.track(range(count), description="drawing scenes")]
        training = default_collate(scenes[: settings.training_scenes])
        test = default_collate(scenes[settings.training_scenes :])
        task = progress.add_task("", total=settings.steps * len(LOSSES))
        networks = {
            name: train(criterion, training, settings, _Report(progress, task, name))
            for name, criterion in LOSSES.items()
        }
    return test, networks


class _Report:
    """Shows the running mean of a loss in the progress bar."""

    def __init__(self, progress: Progress, task: TaskID, name: str) -> None:
        self.progress, self.task, self.name = progress, task, name
        self.mean: float | None = None

    def __call__(self, loss: float) -> None:
        self.mean = loss if self.mean is None else 0.95 * self.mean + 0.05 * loss
        self.progress.update(self.task, advance=1, description=f"{self.name}, loss {self.mean:.3f}")


def _write_record(result: DemoResult, settings: DemoSettings, seconds: float) -> None:
    """Write the scores and how to get them again."""
    record = {
        "scores": result.scores,
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
        "versions": {
            "softjaccard": softjaccard.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    write_text(result.record, json.dumps(record, indent=2) + "\n")


def _print_table(result: DemoResult, console: Console) -> None:
    table = Table("loss", *(f"{name} %" for name in next(iter(result.scores.values()))))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, scores in result.scores.items():
        table.add_row(name, *(f"{100 * score:.1f}" for score in scores.values()))
    console.print(table)
    console.print(
        "On held-out scenes, one seed. mIoU: overlap with the most probable class (more is better). "
        "ECE: confidence against the true chance that an annotator agrees; distance: "
        f"total variation between predicted and true probabilities (both: less is better). Picture: {result.picture}",
        highlight=False,
    )

"""Test results made of random numbers, for tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softjaccard import RaterLabel
from softjaccard.evaluation.results import EvaluationResult, Picture
from softjaccard.labels import LabelLike
from softjaccard.metrics import calibration_scores, calibration_sums, fine_grained_iou, image_counts, soft_scores
from softjaccard.metrics.confidence import FINE_BINS
from softjaccard.statistics import region_statistics

CLASSES = ("ground", "tree & bush", '<b>"sign"</b>', "never seen")
COLOURS = ((230, 230, 230), (0, 158, 115), (213, 94, 0), (240, 228, 66))
SIZE = (24, 36)


def random_images(images: int, seed: int, skill: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels (with ignored pixels, and without the last class), and logits that are more or less right."""
    generator = torch.Generator().manual_seed(0)  # the same images whatever the seed of the logits
    coarse = torch.randint(3, (images, SIZE[0] // 6, SIZE[1] // 6), generator=generator)
    label = coarse.repeat_interleave(6, 1).repeat_interleave(6, 2)
    label[:, :2] = -100
    image = torch.rand(images, 3, *SIZE, generator=generator)
    generator.manual_seed(seed + 1)
    logits = torch.randn(images, len(CLASSES), *SIZE, generator=generator)
    logits[:, 3] = -9
    logits += skill * torch.nn.functional.one_hot(label.clamp(min=0), len(CLASSES)).movedim(-1, 1)
    return image, label, logits


def made_up(images: int = 6, seed: int = 0, skill: float = 2.0, **changes: Any) -> EvaluationResult:
    """A consistent result of `images` images, of which the first two have pictures."""
    image, label, logits = random_images(images, seed, skill)
    prediction, probabilities = logits.argmax(1), logits.softmax(1)
    counts = image_counts(prediction, label, len(CLASSES))
    of_label, bins, calibration = calibration_of(probabilities, label)
    kept = label >= 0
    confusion = torch.bincount((label * len(CLASSES) + prediction)[kept], minlength=16).reshape(4, 4)
    scores = fine_grained_iou(counts)
    by_class = zip(CLASSES, scores["IoU_D"].tolist(), scores["active_D"], strict=True)
    result = EvaluationResult(
        split="test",
        checkpoint="run/checkpoints/best.ckpt",
        epoch=3,
        step=120,
        seed=seed,
        versions={"softjaccard": "0.1", "torch": "2.9"},
        settings={
            "window": None,
            "overlap": 0.5,
            "scales": [1.0],
            "flip": False,
            "decoding": "argmax",
            "temperature": 1.0,
        },
        classes=CLASSES,
        colours=COLOURS,
        images=tuple(f"image <{number}>" for number in range(images)),
        scores={
            **{name: scores[name].item() for name in ("mIoU_D", "mIoU_I", "mIoU_C", "mIoU_C_worst5", "Acc", "mDice_I")},
            **{name: calibration[name] for name in ("ECE", "NLL")},
            "loss": 0.123456,
            **{f"IoU_D/{name}": value for name, value, active in by_class if active},
        },
        counts=counts,
        confusion=confusion,
        calibration=of_label.pop("calibration"),
        class_calibration=bins[:, 1:].sum(0),
        sums=of_label,
        worst={"IoU": (1, 0), "Acc": (0,)},
        pictures={i: Picture.encode(image[i], label[i], prediction[i], len(CLASSES)) for i in (0, 1)},
    )
    return replace(result, **changes)


def calibration_of(probabilities: Tensor, label: LabelLike) -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
    """What is kept by image, all bins (N, C + 1, 3, 10), and the scores."""
    pixels = calibration_sums(probabilities, label, per_image=True).over(1)
    bins = pixels.cells[:, :3].unflatten(-1, (10, FINE_BINS)).sum(-1).transpose(1, 2)
    sums = {"calibration": bins[:, 0], "losses": pixels.losses, "class_gaps": bins[:, 1:, 1] - bins[:, 1:, 2]}
    return sums, bins, {name: score.item() for name, score in calibration_scores(pixels.over(0)).items()}


def random_votes(images: int) -> Tensor:
    """Three annotators: one shifts all, one leaves out the right half, one sees the last class in one image only."""
    _, label, _ = random_images(images, 0)
    votes = torch.stack((label.roll(2, -1), label, label), 1)
    votes[:, 1, :, SIZE[1] // 2 :] = -100
    votes[-1, 2, 10:14, 5:9] = 3
    return votes


def rated(images: int = 6, seed: int = 0, skill: float = 2.0, **changes: Any) -> EvaluationResult:
    """A result of images with votes, too; all else is that of `made_up`."""
    result = made_up(images, seed, skill)
    _, _, logits = random_images(images, seed, skill)
    votes = RaterLabel(random_votes(images))
    sums, _, scores = calibration_of(logits.softmax(1), votes)
    statistics = region_statistics(logits.double(), votes)
    scores |= {name: score.item() for name, score in soft_scores(statistics).items() if score.ndim == 0}
    sums |= statistics.fields()
    changed: dict[str, Any] = {
        "scores": {**result.scores, **{f"{name}_votes": score for name, score in scores.items()}},
        "sums": {**result.sums, **{f"{name}_votes": rows for name, rows in sums.items()}},
    }
    return replace(result, **changed | changes)

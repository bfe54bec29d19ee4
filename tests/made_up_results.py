"""Test results made of random numbers, for tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softjaccard.evaluation.results import EvaluationResult, Picture
from softjaccard.metrics import calibration_scores, calibration_sums, fine_grained_iou, image_counts
from softjaccard.metrics.confidence import FINE_BINS

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
    pixels = calibration_sums(probabilities, label, per_image=True)
    sums = pixels.cells[:, 0, :3].unflatten(-1, (10, FINE_BINS)).sum(-1).transpose(1, 2)
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
        classes=CLASSES,
        colours=COLOURS,
        images=tuple(f"image <{number}>" for number in range(images)),
        scores={
            **{name: scores[name].item() for name in ("mIoU_D", "mIoU_I", "mIoU_C", "mIoU_C_worst5", "Acc", "mDice_I")},
            **{name: calibration_scores(pixels.over(0).over(0))[name].item() for name in ("ECE", "NLL")},
            "loss": 0.123456,
            **{f"IoU_D/{name}": value for name, value, active in by_class if active},
        },
        counts=counts,
        confusion=confusion,
        calibration=sums[:, 0],
        class_calibration=sums[:, 1:].sum(0),
        worst={"IoU": (1, 0), "Acc": (0,)},
        pictures={i: Picture.encode(image[i], label[i], prediction[i], len(CLASSES)) for i in (0, 1)},
    )
    return replace(result, **changes)

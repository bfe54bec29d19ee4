"""Fine-grained IoU against a plain NumPy transcription and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from softjaccard.metrics import FineGrainedIoU, fine_grained_iou, image_counts

NAMES = ("mIoU_D", "mIoU_I", "mIoU_C")


def transcription(predictions: Tensor, label: Tensor, kept: Tensor, num_classes: int) -> dict[str, float]:
    """D, I and C from sets of pixels, one image and class at a time."""

    def intersection_and_union(c: int, images: list[int]) -> tuple[int, int]:
        p, y, k = (x[images].numpy().ravel() for x in (predictions, label, kept))
        p, y = (p == c) & k, (y == c) & k
        return int((p & y).sum()), int((p | y).sum())

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else 0.0

    images = range(len(label))
    pooled = [intersection_and_union(c, list(images)) for c in range(num_classes)]
    by_class: list[list[float]] = [[] for _ in range(num_classes)]
    by_image: list[list[float]] = [[] for _ in images]
    for i in images:
        for c in range(num_classes):
            if bool(((label[i] == c) & kept[i]).any()):
                hit, union = intersection_and_union(c, [i])
                by_class[c].append(hit / union)
                by_image[i].append(hit / union)
    return {
        "mIoU_D": mean([hit / union for hit, union in pooled if union]),
        "mIoU_I": mean([mean(values) for values in by_image if values]),
        "mIoU_C": mean([mean(values) for values in by_class if values]),
    }


def random_batch(images: int, num_classes: int, spatial: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, C, *spatial) and labels of which some are 255; odd images lack the upper half of the classes."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(num_classes, (images, *spatial), generator=generator)
    label[1::2] %= max(1, num_classes // 2)
    logits = torch.randn(images, num_classes, *spatial, generator=generator)
    logits.scatter_add_(1, label.unsqueeze(1), torch.full_like(logits, 1.5))
    label[torch.rand(label.shape, generator=generator) < 0.2] = 255
    return logits, label


@pytest.mark.parametrize("num_classes", [2, 5, 19, 190])
@pytest.mark.parametrize("spatial", [(40,), (7, 9), (3, 5, 4)])
def test_equals_the_transcription(num_classes: int, spatial: tuple[int, ...]) -> None:
    metric = FineGrainedIoU(num_classes, ignore_index=255)
    logits, label = random_batch(7, num_classes, spatial)
    label[3] = 255
    mask = torch.rand(label.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    for batch in ([0, 1, 2], [3], [4, 5, 6]):
        metric.update(logits[batch], label[batch], mask[batch])
    expected = transcription(logits.argmax(1), label, mask & (label != 255), num_classes)
    scores = metric.compute()
    assert {name: scores[name].item() for name in NAMES} == pytest.approx(expected, abs=1e-12)
    assert metric.table.shape == (7, num_classes, 3)
    assert metric.table.dtype == torch.int64


def test_equals_torchmetrics_over_the_data_set() -> None:
    logits, label = random_batch(6, 5, (11, 13))
    logits[:, 4] = -9.0
    label[label == 4] = 255  # a class that is nowhere: both leave it out
    theirs = MulticlassJaccardIndex(5, average="macro", ignore_index=255)
    by_class = MulticlassJaccardIndex(5, average="none", ignore_index=255)
    scores = fine_grained_iou(image_counts(logits, label, 5, ignore_index=255))
    assert scores["mIoU_D"].item() == pytest.approx(theirs(logits, label).item(), abs=1e-6)
    torch.testing.assert_close(scores["IoU_D"][:4].float(), by_class(logits, label)[:4])
    assert scores["active_D"].tolist() == [True] * 4 + [False]
    assert scores["IoU_D"][4] == 0


def test_a_class_that_is_only_predicted_counts_in_d_alone() -> None:
    scores = fine_grained_iou(image_counts(torch.tensor([[0, 0, 0, 1]]), torch.zeros(1, 4, dtype=torch.long), 3))
    assert [scores[name].item() for name in NAMES] == [0.375, 0.75, 0.75]


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_count_gives_zero(images: int) -> None:
    metric = FineGrainedIoU(4)
    if images:
        metric.update(torch.zeros(images, 4, 3, 3), torch.full((images, 3, 3), -100))
    scores = metric.compute()
    assert [scores[name].item() for name in NAMES] == [0.0, 0.0, 0.0]
    assert not scores["active_D"].any()


def test_ignored_pixels_may_hold_anything() -> None:
    logits, label = random_batch(3, 5, (6, 6))
    ignored = label == 255
    expected = image_counts(logits, label, 5, ignore_index=255)
    changed = torch.where(ignored.unsqueeze(1), math.nan, logits)
    assert torch.equal(image_counts(changed, label, 5, ignore_index=255), expected)
    ids = torch.where(ignored, 70_000, logits.argmax(1))
    assert torch.equal(image_counts(ids, label, 5, ignore_index=255), expected)
    masked = torch.where(ignored, 77, label)
    assert torch.equal(image_counts(ids, masked, 5, mask=~ignored), expected)


def test_class_156_in_bytes_is_not_ignored() -> None:
    label = torch.full((1, 4), 156, dtype=torch.uint8)
    assert image_counts(label, label, 157)[0, 156].tolist() == [4, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32])
def test_any_integer_type(dtype: torch.dtype) -> None:
    ids, label = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 0, 0]])
    assert torch.equal(image_counts(ids.to(dtype), label.to(dtype), 2), image_counts(ids, label, 2))


def test_ranks_with_uneven_shares_give_the_same_scores() -> None:
    logits, label = random_batch(5, 4, (8, 8))
    whole = FineGrainedIoU(4, ignore_index=255)
    whole.update(logits, label)
    first, second = FineGrainedIoU(4, ignore_index=255), FineGrainedIoU(4, ignore_index=255)
    for batch in ([0], [1, 2, 3]):
        first.update(logits[batch], label[batch])
    second.update(logits[4:], label[4:])
    first.merge_state(second)
    for name, value in whole.compute().items():
        torch.testing.assert_close(first.compute()[name], value, rtol=0, atol=1e-12)


def test_a_rank_without_images_takes_part_in_the_gathering() -> None:
    logits, label = random_batch(3, 4, (8, 8))
    other = image_counts(logits, label, 4, ignore_index=255)
    sent = []

    def gather(mine: Tensor, group: object = None) -> list[Tensor]:
        sent.append(mine)
        return [mine, other]

    metric = FineGrainedIoU(4, ignore_index=255)
    metric.sync(dist_sync_fn=gather, distributed_available=lambda: True)
    assert sent[0].shape == (0, 4, 3)
    assert sent[0].dtype == torch.int64
    assert torch.equal(metric.table, other)
    metric.unsync()
    assert len(metric.table) == 0


def test_forward_gives_the_batch_and_accumulates() -> None:
    logits, label = random_batch(4, 3, (6, 6))
    metric = FineGrainedIoU(3, ignore_index=255)
    for batch in ([0, 1], [2, 3]):
        alone = fine_grained_iou(image_counts(logits[batch], label[batch], 3, ignore_index=255))
        torch.testing.assert_close(metric(logits[batch], label[batch]), alone)
    assert len(metric.table) == 4
    metric.reset()
    assert len(metric.table) == 0


@pytest.mark.parametrize(
    ("predictions", "label", "error", "words"),
    [
        (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), TypeError, r"label: expected integer.*argmax"),
        (torch.zeros(1, 2, 4), torch.zeros(1, 4).long(), ValueError, r"predictions: .*\(1, 3, 4\).*\(1, 2, 4\)"),
        (torch.zeros(1, 5).long(), torch.zeros(1, 4).long(), ValueError, r"predictions: .*\(1, 4\).*\(1, 5\)"),
        (torch.zeros(1, 3, 4), torch.tensor([[0, 1, 255, 2]]), ValueError, r"label: .*0 to 2.*ignore_index=255"),
        (torch.tensor([[0, 3]]), torch.tensor([[0, 1]]), ValueError, r"predictions: .*0 to 2, found \[3\]"),
        (torch.tensor([[0, -1]]), torch.tensor([[0, 1]]), ValueError, r"predictions: .*found \[-1\]"),
    ],
)
def test_bad_input_is_named(predictions: Tensor, label: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FineGrainedIoU(3).update(predictions, label)


def test_bad_masks_and_options_are_named() -> None:
    logits, label = torch.zeros(1, 3, 4), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(TypeError, match="mask: expected booleans"):
        image_counts(logits, label, 3, mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match="mask: expected shape"):
        image_counts(logits, label, 3, mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_classes: expected at least 2"):
        FineGrainedIoU(1)

"""Calibration error against a plain NumPy transcription, torchmetrics, and cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from softjaccard.metrics import CalibrationError, calibration_error, calibration_sums


def transcription(probabilities: Tensor, label: Tensor, kept: Tensor, bins: int) -> float:
    """ECE, one pixel at a time."""
    pixels = [[] for _ in range(bins)]  # type: list[list[tuple[float, float]]]
    channels_last = probabilities.movedim(1, -1)
    soft = label.movedim(1, -1) if label.is_floating_point() else torch.nn.functional.one_hot(label.clamp(0, 4), 5)
    for p, y in zip(channels_last[kept].double().numpy(), soft[kept].double().numpy(), strict=True):
        number = next(
            (i for i in range(bins) if p.max() < np.linspace(0, 1, bins + 1, dtype=np.float32)[i + 1]), bins - 1
        )
        pixels[number].append((float(p.max()), float(y[p.argmax()])))
    total = sum(map(len, pixels))
    return sum(abs(sum(c for c, _ in members) - sum(h for _, h in members)) for members in pixels) / max(total, 1)


def random_batch(spatial: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (6, 5, *spatial), hard labels of which some are 255, and soft labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5, *spatial, generator=generator) * 2
    soft = torch.softmax(torch.randn(6, 5, *spatial, generator=generator) + logits / 2, 1)
    label = torch.randint(5, (6, *spatial), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.2] = 255
    return torch.softmax(logits, 1), label, soft


@pytest.mark.parametrize("spatial", [(30,), (5, 7), (2, 3, 5)])
@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_equals_the_transcription(spatial: tuple[int, ...], bins: int, kind: str) -> None:
    probabilities, hard, soft = random_batch(spatial)
    label = hard if kind == "hard" else soft
    mask = torch.rand(hard.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    metric = CalibrationError(5, bins, ignore_index=255)
    for batch in ([0], [1, 2, 3, 4], [5]):
        metric.update(probabilities[batch], label[batch], mask[batch])
    kept = mask & (hard != 255) if kind == "hard" else mask
    assert metric.compute()["ECE"].item() == pytest.approx(transcription(probabilities, label, kept, bins), abs=1e-9)
    assert metric.sums.shape == (3, bins)
    assert metric.sums.dtype == torch.float64


@pytest.mark.parametrize("bins", [10, 15])
def test_equals_torchmetrics(bins: int) -> None:
    probabilities, label, _ = random_batch((20, 20))
    assert probabilities.max() < 1  # torchmetrics puts a confidence of 1 into a bin of its own
    theirs = MulticlassCalibrationError(5, n_bins=bins, norm="l1", ignore_index=255)
    ours = calibration_error(calibration_sums(probabilities, label, bins, ignore_index=255))
    assert ours["ECE"].item() == pytest.approx(theirs(probabilities, label).item(), abs=1e-6)


def test_the_end_bins_by_hand() -> None:
    # Confidence 1 belongs to the last bin [0.9, 1], together with 0.95; an edge belongs to the bin above it.
    probabilities = torch.tensor([[[1.0, 0.95, 0.5], [0.0, 0.05, 0.5]]])
    sums = calibration_sums(probabilities, torch.tensor([[0, 1, 0]]))
    assert sums[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert calibration_error(sums)["ECE"].item() == pytest.approx((0.5 + 0.95) / 3, abs=1e-7)
    # Confidence 1 / 4 is the least of four classes; with four bins it lies on an edge, with one it is in the first.
    even = torch.full((1, 4, 1), 0.25)
    assert calibration_sums(even, torch.tensor([[0]]), 4)[0].tolist() == [0, 1, 0, 0]
    assert calibration_sums(even, torch.tensor([[0]]), 1)[0].tolist() == [1]


def test_a_soft_label_that_is_one_hot_equals_the_hard_one() -> None:
    probabilities, label, _ = random_batch((9, 9))
    kept = label != 255
    soft = torch.nn.functional.one_hot(label * kept, 5).movedim(-1, 1).float()
    torch.testing.assert_close(
        calibration_sums(probabilities, soft, mask=kept), calibration_sums(probabilities, label, ignore_index=255)
    )


def test_the_true_distribution_is_calibrated() -> None:
    probabilities, _, _ = random_batch((9, 9))
    assert calibration_error(calibration_sums(probabilities, probabilities))["ECE"] < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_of_any_type(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 5, 8, generator=generator) * 3).to(dtype)
    label = torch.randint(5, (2, 8), generator=generator)
    metric, reference = CalibrationError(5, from_logits=True), CalibrationError(5)
    metric.update(logits, label)
    reference.update(torch.softmax(logits.double(), 1), label)
    torch.testing.assert_close(metric.compute(), reference.compute(), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_nothing_to_count_gives_zero() -> None:
    metric = CalibrationError(3)
    assert metric.compute() == {"ECE": 0}
    metric.update(torch.full((1, 3, 4), math.nan), torch.full((1, 4), -100))
    assert metric.compute() == {"ECE": 0}


def test_ignored_pixels_may_hold_anything() -> None:
    probabilities, label, soft = random_batch((6, 6))
    kept = label != 255
    changed = torch.where(kept.unsqueeze(1), probabilities, math.nan)
    expected = calibration_sums(probabilities, label, ignore_index=255)
    assert torch.equal(calibration_sums(changed, label, ignore_index=255), expected)
    broken = torch.where(kept.unsqueeze(1), soft, math.nan)
    assert torch.equal(calibration_sums(changed, broken, mask=kept), calibration_sums(probabilities, soft, mask=kept))


def test_ranks_with_uneven_shares_give_the_same_score() -> None:
    probabilities, label, _ = random_batch((9, 9))
    whole, first, second = (CalibrationError(5, ignore_index=255) for _ in range(3))
    whole.update(probabilities, label)
    for batch in ([0], [1, 2, 3]):
        first.update(probabilities[batch], label[batch])
    second.update(probabilities[4:], label[4:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "label", "error", "words"),
    [
        (torch.zeros(1, 3, 4).long(), torch.zeros(1, 4).long(), TypeError, "probabilities: expected floats"),
        (torch.ones(1, 2, 4) / 2, torch.zeros(1, 4).long(), ValueError, r"probabilities: expected shape \(B, 3"),
        (torch.ones(1, 3, 4) / 3, torch.zeros(1, 5).long(), ValueError, r"label: .*\(1, 4\).*\(1, 5\)"),
        (torch.ones(1, 3, 4) / 3, torch.zeros(1, 4), ValueError, r"label: .*\(1, 3, 4\).*float32.*\(1, 4\)"),
        (torch.randn(1, 3, 4), torch.zeros(1, 4).long(), ValueError, r"probabilities: .*from_logits=True"),
        (torch.tensor([[[1.5], [-0.5], [0.0]]]), torch.zeros(1, 1).long(), ValueError, "probabilities: .*sum to 1"),
        (torch.ones(1, 3, 4) / 3, torch.ones(1, 3, 4), ValueError, "label: expected probabilities"),
        (torch.ones(1, 3, 2) / 3, torch.tensor([[255, 0]]), ValueError, "label: .*ignore_index=255"),
    ],
)
def test_bad_input_is_named(probabilities: Tensor, label: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        CalibrationError(3).update(probabilities, label)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="bins: expected at least 1"):
        CalibrationError(3, bins=0)
    with pytest.raises(ValueError, match="num_classes: expected at least 2"):
        CalibrationError(1)

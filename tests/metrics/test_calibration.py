"""Calibration scores against a plain NumPy transcription, torchmetrics, and cases computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

import calibration_ranks
from softjaccard import RaterLabel, SmoothedLabel, TeacherLabel, boundary, dense
from softjaccard.metrics import CalibrationError, calibration_scores, calibration_sums
from softjaccard.metrics.calibration import CALIBRATION_SCORES
from softjaccard.metrics.confidence import FINE_BINS

# --- The transcription: float64, from lists of pixels (n, C) ---------------------------------------------------------


def binned_gap(confidence: np.ndarray, hits: np.ndarray, bins: int) -> list[tuple[float, float]]:
    """|sum of confidence - sum of hits| and the number of pixels of each bin."""
    number = np.minimum(np.floor(confidence * bins).astype(int), bins - 1)
    return [(abs(confidence[number == i].sum() - hits[number == i].sum()), (number == i).sum()) for i in range(bins)]


def equal_mass_gap(confidence: np.ndarray, hits: np.ndarray, bins: int, fine: int | None) -> float:
    """The sum over bins of equal mass of |confidence - hits|, as a mean over pixels.

    Exact for ``fine`` None; else every pixel is replaced by the mean of those in its fine bin. Each pixel counts
    ``bins`` times, so that any number of them can be divided evenly.
    """
    if fine:
        number = np.minimum(np.floor(confidence * fine).astype(int), fine - 1)
        for i in np.unique(number):
            confidence = np.where(number == i, confidence[number == i].mean(), confidence)
            hits = np.where(number == i, hits[number == i].mean(), hits)
    order = np.argsort(confidence, kind="stable").repeat(bins)
    gap = (confidence - hits)[order].reshape(bins, -1)
    return float(np.abs(gap.sum(1)).sum() / len(order))


def transcription(p: np.ndarray, y: np.ndarray, bins: int, classes: list[int]) -> dict[str, float]:
    """Every score of the pixels with probabilities ``p`` and label ``y``, both (n, C)."""
    n = len(p)
    if not n:
        return dict.fromkeys(CALIBRATION_SCORES, 0.0)
    predicted = p.argmax(1)
    top = binned_gap(p.max(1), y[np.arange(n), predicted], bins)
    by_class = [
        [sum(gap for gap, _ in binned_gap(p[:, k], hits, bins)) / n for hits in (y[:, k], y[:, k] * (predicted == k))]
        for k in classes
    ]
    adaptive = [equal_mass_gap(p[:, k], y[:, k], bins, bins * FINE_BINS) for k in classes]
    values = (
        sum(gap for gap, _ in top) / n,
        max(gap / count for gap, count in top if count),
        np.mean(by_class, 0)[0],
        np.mean(by_class, 0)[1],
        np.mean(adaptive),
        ((p - y) ** 2).sum(1).mean(),
        -(y * np.log(np.maximum(p, 1e-12))).sum(1).mean(),
    )
    return dict(zip(CALIBRATION_SCORES, map(float, values), strict=True))


def expected_scores(
    probabilities: Tensor, label: Tensor, kept: Tensor, bins: int, bands: dict[str, Tensor]
) -> dict[str, float]:
    """Scores of the data set and means over images; ``label`` is (N, C, *spatial)."""
    classes = probabilities.shape[1]
    result = {}
    for name, band in {"": torch.ones_like(kept), **bands}.items():
        pixels = [
            (p.movedim(0, -1)[k].double().numpy(), y.movedim(0, -1)[k].double().numpy())
            for p, y, k in zip(probabilities, label, kept & band, strict=True)
        ]
        whole = [np.concatenate(parts) for parts in zip(*pixels, strict=True)]
        scores = transcription(whole[0], whole[1], bins, list(range(classes)))
        result |= {score + name: value for score, value in scores.items()}
        images = [
            transcription(p, y, bins, [k for k in range(classes) if y[:, k].sum() > 0]) for p, y in pixels if len(p)
        ]
        for score in CALIBRATION_SCORES:
            result[f"{score}_I{name}"] = float(np.mean([image[score] for image in images])) if images else 0.0
    return result


# --- The data --------------------------------------------------------------------------------------------------------

CLASSES = 5


def random_batch(
    spatial: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (6, 5, *spatial), hard labels of which some are 255, and soft labels.

    Image 2 has one class only, image 3 no pixel that counts, and class 4 is in no label.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, CLASSES, *spatial, generator=generator, dtype=dtype) * 2
    soft = torch.softmax(torch.randn(logits.shape, generator=generator, dtype=dtype) + logits / 2, 1)
    label = (logits + 2 * torch.randn(logits.shape, generator=generator, dtype=dtype))[:, :4].argmax(1)
    label[torch.rand(label.shape, generator=generator) < 0.2] = 255
    label[2] = torch.where(label[2] == 255, 255, 1)
    label[3] = 255
    return logits, label, soft


def one_hot(label: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(label * (label != 255), CLASSES).movedim(-1, 1)


def band_names(kernel_size: int) -> tuple[str, str]:
    return f"_boundary_{kernel_size - 1}px", f"_interior_{kernel_size - 1}px"


# --- Against the transcription ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [(30,), (11, 7), (3, 5, 6)])
@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.usefixtures("small_tiles")
def test_every_score_equals_the_transcription(
    spatial: tuple[int, ...], bins: int, kind: str, from_logits: bool
) -> None:
    logits, hard, soft = random_batch(spatial, dtype=torch.float64)
    probabilities = torch.softmax(logits, 1)
    mask = torch.rand(hard.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    if kind == "hard":
        label, distribution, kept, ids = hard, one_hot(hard), mask & (hard != 255), hard
    else:
        mask[3] = False
        label, distribution, kept, ids = soft, soft, mask, soft.argmax(1)
    band = boundary(torch.where(kept, ids, 255), 3, ignore_index=255)
    bands = dict(zip(band_names(3), (band, ~band), strict=True))
    metric = CalibrationError(
        CLASSES, bins, ignore_index=255, from_logits=from_logits, per_image=True, boundary_kernel_size=3
    )
    for batch in ([0], [1, 2, 3, 4], [5]):
        metric.update((logits if from_logits else probabilities)[batch], label[batch], mask[batch])
    scores = {name: score.item() for name, score in metric.compute().items()}
    assert scores == pytest.approx(expected_scores(probabilities, distribution, kept, bins, bands), abs=1e-12)
    assert metric.images.shape == (6, 3, 1 + len(CALIBRATION_SCORES))
    assert metric.images[3].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_logits_of_any_type(dtype: torch.dtype, kind: str) -> None:
    logits, hard, soft = random_batch((9, 9))
    logits, label = logits.to(dtype), hard if kind == "hard" else soft
    metric, reference = (CalibrationError(CLASSES, ignore_index=255, from_logits=True) for _ in range(2))
    metric.update(logits, label)
    reference.update(logits.double(), label)
    torch.testing.assert_close(metric.compute(), reference.compute(), rtol=0, atol=2e-6)
    assert metric.reliability().dtype == torch.float64


def test_a_far_logit_keeps_its_likelihood() -> None:
    logits = torch.tensor([[[0.0], [300.0]]])  # its probability is 0 in float32
    for label in (torch.tensor([[0]]), torch.tensor([[[1.0], [0.0]]])):
        scores = calibration_scores(calibration_sums(logits, label, from_logits=True).at(0, 0))
        assert scores["NLL"].item() == pytest.approx(300)
    scores = calibration_scores(calibration_sums(torch.softmax(logits, 1), torch.tensor([[0]])).at(0, 0))
    assert scores["NLL"].item() == pytest.approx(-math.log(1e-12))
    certain = torch.tensor([[[0.0], [-math.inf]]])
    for label in (torch.tensor([[0]]), torch.tensor([[[1.0], [0.0]]])):
        scores = calibration_scores(calibration_sums(certain, label, from_logits=True).at(0, 0))
        assert [scores[name].item() for name in CALIBRATION_SCORES] == [0.0] * len(CALIBRATION_SCORES)


def test_adaptive_bins_from_fine_ones_are_nearly_exact() -> None:
    # From nearly flat to sharp distributions, calibrated or not; the exact scores go from 0.001 to 0.12.
    worst, largest = 0.0, 0.0
    for classes in (2, 5, 19):
        for scale, sharpness in ((1.0, 1.5), (3.0, 0.5), (3.0, 1.0), (6.0, 0.5), (6.0, 0.3)):
            logits = torch.randn(1, classes, 100, 150, dtype=torch.float64) * scale
            label = torch.distributions.Categorical(logits=(logits * sharpness).movedim(1, -1)).sample()
            p = torch.softmax(logits, 1)[0].flatten(1).numpy()
            y = np.eye(classes)[label.flatten().numpy()]
            exact = float(np.mean([equal_mass_gap(p[k], y[:, k], 10, None) for k in range(classes)]))
            sums = calibration_sums(logits, label, from_logits=True).at(0, 0)
            worst = max(worst, abs(exact - calibration_scores(sums)["ACE"].item()))
            largest = max(largest, exact)
    assert worst < 5e-4
    assert largest > 0.1


# --- Against other sources -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [10, 15])
def test_equals_torchmetrics(bins: int) -> None:
    logits, label, _ = random_batch((20, 20))
    probabilities = torch.softmax(logits, 1)
    assert probabilities.max() < 1  # torchmetrics puts a confidence of 1 into a bin of its own
    metric = CalibrationError(CLASSES, bins, ignore_index=255)
    metric.update(probabilities, label)
    for norm, name in (("l1", "ECE"), ("max", "MCE")):
        theirs = MulticlassCalibrationError(CLASSES, n_bins=bins, norm=norm, ignore_index=255)
        assert metric.compute()[name].item() == pytest.approx(theirs(probabilities, label).item(), abs=1e-6)


@pytest.mark.parametrize("bins", [10, 15])
def test_equals_numpy_histograms(bins: int) -> None:
    logits, label, _ = random_batch((20, 20))
    probabilities = torch.softmax(logits, 1)
    confidence, predicted = probabilities.max(1)
    confidence, hits = confidence[label != 255].numpy(), (predicted == label)[label != 255].numpy()
    edges = np.linspace(0, 1, bins + 1)
    mass, right = (np.histogram(confidence, edges, weights=weights)[0] for weights in (confidence, hits * 1.0))
    metric = CalibrationError(CLASSES, bins, ignore_index=255)
    metric.update(probabilities, label)
    assert metric.compute()["ECE"].item() == pytest.approx(np.abs(mass - right).sum() / len(hits), abs=1e-6)


# --- By hand ---------------------------------------------------------------------------------------------------------


def test_the_end_bins_by_hand() -> None:
    # Confidence 1 belongs to the last bin [0.9, 1], together with 0.95; 0 to the first; an edge to the bin above it.
    metric = CalibrationError(2)
    metric.update(torch.tensor([[[1.0, 0.95, 0.5], [0.0, 0.05, 0.5]]]), torch.tensor([[0, 1, 0]]))
    pixels, confidence, hits = metric.reliability()
    assert pixels.tolist() == [
        [0, 0, 0, 0, 0, 1, 0, 0, 0, 2],
        [0, 0, 0, 0, 0, 1, 0, 0, 0, 2],
        [2, 0, 0, 0, 0, 1, 0, 0, 0, 0],
    ]
    assert confidence[:, [0, 5, 9]].flatten().tolist() == pytest.approx([0, 0.5, 1.95, 0, 0.5, 1.95, 0.05, 0.5, 0])
    assert hits[:, [0, 5, 9]].tolist() == [[0, 1, 1], [0, 1, 1], [1, 0, 0]]
    scores = {name: score.item() for name, score in metric.compute().items()}
    # 0.05 with one hit, 0.5 with a hit or none, 1.95 with one hit. Only the two right pixels are hits for argmax.
    assert scores["ECE"] == pytest.approx((0.5 + 0.95) / 3, abs=1e-7)
    assert scores["MCE"] == pytest.approx(0.5, abs=1e-7)
    assert scores["SCE"] == pytest.approx((1.45 + 1.45) / 6, abs=1e-7)
    assert scores["SCE_argmax"] == pytest.approx((1.45 + 0.55) / 6, abs=1e-7)
    assert scores["Brier"] == pytest.approx((0 + 2 * 0.95**2 + 0.5) / 3, abs=1e-7)
    assert scores["NLL"] == pytest.approx(-(math.log(0.05) + math.log(0.5)) / 3, abs=1e-6)


@pytest.mark.parametrize(("bins", "number"), [(4, 1), (1, 0)])
def test_an_edge_belongs_to_the_bin_above(bins: int, number: int) -> None:
    metric = CalibrationError(4, bins)
    metric.update(torch.full((1, 4, 1), 0.25), torch.tensor([[0]]))
    assert metric.reliability()[0, 0].nonzero().flatten().tolist() == [number]


def test_the_true_distribution_is_calibrated() -> None:
    probabilities = random_batch((9, 9))[2]
    metric = CalibrationError(CLASSES, per_image=True)
    metric.update(probabilities, probabilities)
    scores = metric.compute()
    for name in ("ECE", "MCE", "SCE", "ACE", "Brier"):
        assert scores[name] < 1e-12
        assert scores[name + "_I"] < 1e-12
    assert scores["SCE_argmax"] > 0.05


def test_a_tie_counts_for_the_class_that_argmax_takes() -> None:
    metric = CalibrationError(2)
    metric.update(torch.full((1, 2, 2), 0.5), torch.tensor([[0, 1]]))
    assert metric.reliability()[:, 0].sum(1).tolist() == [2, 1, 1]


# --- Labels, masks, layouts ------------------------------------------------------------------------------------------


def test_every_kind_of_label_equals_its_dense_form() -> None:
    logits, hard, soft = random_batch((7, 8))
    generator = torch.Generator().manual_seed(1)
    votes = torch.randint(-1, CLASSES, (6, 3, 7, 8), generator=generator)
    votes = torch.where(votes == -1, 255, votes)
    votes[:, :, 0] = 255  # pixels that nobody labelled
    labels = (
        hard,
        hard.to(torch.uint8),
        soft,
        SmoothedLabel(hard, 0.3, boundary(hard, ignore_index=255)),
        TeacherLabel(soft.log(), temperature=2.0),
        RaterLabel(votes),
        RaterLabel(votes, torch.tensor([1.0, 0.5, 2.0])),
    )
    for label in labels:
        metric, reference = (
            CalibrationError(CLASSES, ignore_index=255, from_logits=True, per_image=True, boundary_kernel_size=5)
            for _ in range(2)
        )
        metric.update(logits, label)
        distribution, mask = dense(label, CLASSES, 255)
        reference.update(logits, distribution, mask)
        torch.testing.assert_close(metric.compute(), reference.compute(), rtol=0, atol=1e-6)


def test_ignored_pixels_may_hold_anything() -> None:
    logits, label, soft = random_batch((6, 6))
    kept = label != 255
    options = {"ignore_index": 255, "from_logits": True, "boundary_kernel_size": 3}

    def same(*changed: Tensor | None, like: tuple[Tensor, Tensor, Tensor | None]) -> None:
        found, expected = (
            calibration_sums(values, target, mask=mask, **options) for values, target, mask in (changed, like)
        )
        assert torch.equal(found.cells, expected.cells)
        assert torch.equal(found.losses, expected.losses)

    for value in (math.nan, math.inf, -math.inf):
        changed = torch.where(kept.unsqueeze(1), logits, value)
        same(changed, label, None, like=(logits, label, None))
        same(changed, torch.where(kept, label, 77), kept, like=(logits, label, None))
        same(changed, torch.where(kept.unsqueeze(1), soft, math.nan), kept, like=(logits, soft, kept))
    probabilities = torch.where(kept.unsqueeze(1), torch.softmax(logits, 1), math.nan)
    metric = CalibrationError(CLASSES, ignore_index=255)
    metric.update(probabilities, label)
    assert metric.compute()["ECE"].isfinite()


def test_any_layout_in_memory() -> None:
    logits, label, _ = random_batch((12, 10))
    expected = calibration_sums(logits, label, ignore_index=255, from_logits=True, per_image=True)
    last = logits.to(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(logits, (3, 2, 1, 4))[:, :, 1:-4, 3:-2]
    for values in (last, padded):
        assert not values.is_contiguous()
        found = calibration_sums(values, label, ignore_index=255, from_logits=True, per_image=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.cells[..., 0, :, :].sum(-1), expected.cells[..., 0, :, :].sum(-1))


@pytest.mark.usefixtures("small_tiles")
def test_threads_change_nothing() -> None:
    logits, label, _ = random_batch((12, 10))
    logits.requires_grad_()
    expected = calibration_sums(logits, label, ignore_index=255, from_logits=True)
    torch.set_num_threads(3)
    try:
        found = calibration_sums(logits, label, ignore_index=255, from_logits=True)
    finally:
        torch.set_num_threads(1)
    assert not found.cells.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_nothing_to_count_gives_zero() -> None:
    metric = CalibrationError(3, per_image=True, boundary_kernel_size=3)
    assert all(score == 0 for score in metric.compute().values())
    metric.update(torch.full((1, 3, 4), math.nan), torch.full((1, 4), -100))
    metric.update(torch.zeros(0, 3, 4), torch.zeros(0, 4, dtype=torch.long))
    metric.update(torch.zeros(1, 3, 0), torch.zeros(1, 0, dtype=torch.long))
    assert all(score == 0 for score in metric.compute().values())
    assert len(metric.compute()) == 2 * 3 * len(CALIBRATION_SCORES)


def test_memory_is_constant_unless_images_are_kept() -> None:
    logits, label, _ = random_batch((6, 6))
    metric, keeping = (
        CalibrationError(CLASSES, ignore_index=255, from_logits=True, per_image=k) for k in (False, True)
    )
    for _ in range(3):
        metric.update(logits, label)
        keeping.update(logits, label)
    assert metric.cells.shape == (1, 4, CLASSES + 1, 10 * FINE_BINS)
    assert len(metric.images) == 0
    assert len(keeping.images) == 18
    assert metric.compute().keys() == set(CALIBRATION_SCORES)


# --- Several processes -----------------------------------------------------------------------------------------------


def test_two_processes_with_uneven_shares_give_the_same_scores(tmp_path: Path) -> None:
    logits, label = calibration_ranks.images()
    metric = calibration_ranks.make_metric()
    metric.update(logits, label)
    expected = {"scores": metric.compute(), "reliability": metric.reliability()}
    for rank in calibration_ranks.run(tmp_path):
        assert len(rank) == len(calibration_ranks.SHARES)
        for found in rank:
            torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-12)
            torch.testing.assert_close(found["reliability"], expected["reliability"], rtol=1e-12, atol=1e-12)


def test_states_can_be_merged() -> None:
    logits, label, _ = random_batch((9, 9))
    whole, first, second = (CalibrationError(CLASSES, ignore_index=255, from_logits=True) for _ in range(3))
    whole.update(logits, label)
    first.update(logits[:1], label[:1])
    second.update(logits[1:], label[1:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=0, atol=1e-12)


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "label", "error", "words"),
    [
        (torch.zeros(1, 3, 4).long(), torch.zeros(1, 4).long(), TypeError, "probabilities: expected floats"),
        (torch.ones(1, 2, 4) / 2, torch.zeros(1, 4).long(), ValueError, r"probabilities: expected shape \(B, 3"),
        (torch.ones(4, 3) / 3, torch.zeros(4).long(), ValueError, "probabilities: .*at least one spatial dimension"),
        (torch.ones(1, 3, 4) / 3, torch.zeros(1, 5).long(), ValueError, r"label: .*\(1, 4\).*\(1, 5\)"),
        (torch.ones(1, 3, 4) / 3, torch.zeros(1, 4), ValueError, r"label: .*\(1, 3, 4\).*float32.*\(1, 4\)"),
        (torch.ones(1, 3, 4) / 3, [0], TypeError, r"label: expected an integer tensor .*list"),
        (torch.randn(1, 3, 4), torch.zeros(1, 4).long(), ValueError, r"probabilities: .*from_logits=True"),
        (torch.tensor([[[1.5], [-0.5], [0.0]]]), torch.zeros(1, 1).long(), ValueError, "probabilities: .*sum to 1"),
        (torch.full((1, 3, 4), math.nan), torch.zeros(1, 4).long(), ValueError, "probabilities: .*NaN"),
        (torch.ones(1, 3, 4) / 3, torch.ones(1, 3, 4), ValueError, "label: expected .* probabilities"),
        (torch.ones(1, 3, 2) / 3, torch.tensor([[255, 0]]), ValueError, "label: .*ignore_index=255"),
        (torch.ones(1, 3, 2) / 3, RaterLabel(torch.full((1, 2, 2), 7)), ValueError, "label.votes: .*ignore_index=7"),
    ],
)
def test_bad_input_is_named(probabilities: Tensor, label: Tensor, error: type[Exception], words: str) -> None:
    metric = CalibrationError(3)
    with pytest.raises(error, match=words):
        metric.update(probabilities, label)
    assert metric.cells.count_nonzero() == 0


def test_bad_masks_and_logits_are_named() -> None:
    probabilities, label = torch.ones(1, 3, 4) / 3, torch.zeros(1, 4).long()
    with pytest.raises(TypeError, match="mask: expected booleans"):
        CalibrationError(3).update(probabilities, label, torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"mask: .*\(1, 4\).*\(1, 5\)"):
        CalibrationError(3).update(probabilities, label, torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="logits is NaN"):
        CalibrationError(3, from_logits=True).update(probabilities * math.inf, label)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 0}, "bins: expected at least 1"),
        ({"num_classes": 1}, "num_classes: expected at least 2"),
        ({"boundary_kernel_size": 4}, "boundary_kernel_size: expected an odd number"),
        ({"boundary_kernel_size": 1}, "boundary_kernel_size: expected an odd number"),
    ],
)
def test_bad_options_are_named(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CalibrationError(**{"num_classes": 3, **options})

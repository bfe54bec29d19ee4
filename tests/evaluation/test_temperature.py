"""Temperature scaling against a NumPy minimiser in float64, and on data whose temperature is known."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from softjaccard import RaterLabel, dense
from softjaccard.errors import InputError
from softjaccard.evaluation.temperature import fit_temperature


def minimum(logits: np.ndarray, label: np.ndarray, sigmoid: bool = False) -> tuple[float, float]:
    """Temperature and mean NLL by golden sections in log T; logits and label distribution (n, C)."""

    def nll(log_temperature: float) -> float:
        z = logits / math.exp(log_temperature)
        if sigmoid:
            return float((np.logaddexp(0, z) - label * z).mean())
        return float((np.logaddexp.reduce(z, 1) - (label * z).sum(1)).mean())

    low, high, ratio = math.log(0.05), math.log(20), (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if nll(left) < nll(right) else (left, high)
    return math.exp(low), nll(low)


def pixels(tensors: list[Tensor], kept: list[Tensor]) -> np.ndarray:
    """(n, C) of the kept pixels, in float64."""
    return np.concatenate([t.movedim(1, -1)[k].double().numpy() for t, k in zip(tensors, kept, strict=True)])


def sampled(temperature: float, classes: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, C, size, size), and labels drawn from the softmax at this temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, size, size, generator=generator)
    p = torch.softmax(logits / temperature, 1).movedim(1, -1)
    label = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(p.shape[:-1])
    return logits, label


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_recovers_the_temperature_of_the_labels(temperature: float) -> None:
    fit = fit_temperature([sampled(temperature, 4, 150)])
    assert fit.value == pytest.approx(temperature, rel=0.02)
    assert fit.at_bound is None
    assert fit.nll_after <= fit.nll_before
    if temperature != 1:
        assert fit.nll_after < fit.nll_before - 0.01


@pytest.mark.parametrize("kind", ["hard", "soft", "raters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("small_tiles")
def test_equals_the_minimiser(kind: str, dtype: torch.dtype) -> None:
    batches, distributions, kept = [], [], []
    for seed, temperature in enumerate((0.6, 4.0, 1.0)):  # batches that disagree, of unequal size
        logits, label = sampled(temperature, 5, 9 + 4 * seed, seed)
        generator = torch.Generator().manual_seed(seed)
        label[torch.rand(label.shape, generator=generator) < 0.2] = 255
        mask = torch.rand(label.shape, generator=generator) < 0.7
        other = torch.randint(5, label.shape, generator=generator)
        soft = torch.softmax(logits / 2 + torch.randn(logits.shape, generator=generator), 1)
        target = {"hard": label, "soft": soft, "raters": RaterLabel(torch.stack((label, label, other), 1))}[kind]
        distribution, counted = dense(target, 5, 255, dtype=torch.float64)
        batches.append((logits.to(dtype), target, mask))
        distributions.append(distribution)
        kept.append(counted & mask)
    fit = fit_temperature(batches, ignore_index=255)
    logits = pixels([batch[0] for batch in batches], kept)
    value, nll = minimum(logits, pixels(distributions, kept))
    assert fit.value == pytest.approx(value, rel=1e-6)
    # A probability that float32 stores need not sum to 1 exactly.
    assert fit.nll_after == pytest.approx(nll, rel=1e-6 if kind == "soft" else 1e-12)
    assert fit.at_bound is None


def test_binary_equals_the_minimiser() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 1, 20, 21, generator=generator)
    label = (torch.rand(2, 20, 21, generator=generator) < torch.sigmoid(logits[:, 0] / 3)).long()
    label[:, 3:5] = 255
    fit = fit_temperature([(logits, label)], activation="sigmoid", ignore_index=255)
    kept = [label != 255]
    value, nll = minimum(pixels([logits], kept), pixels([label.unsqueeze(1)], kept), sigmoid=True)
    assert fit.value == pytest.approx(value, rel=1e-6)
    assert fit.nll_after == pytest.approx(nll, rel=1e-12)
    two = fit_temperature([(torch.cat((torch.zeros_like(logits), logits), 1), label)], ignore_index=255)
    assert two.value == pytest.approx(fit.value, rel=1e-9)


def test_multilabel_equals_the_minimiser() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 3, 10, 11, generator=generator)
    label = (torch.rand(2, 3, 10, 11, generator=generator) < torch.sigmoid(logits / 3)).long()
    label[0, 1] = 255  # one map of one image is missing
    fit = fit_temperature([(logits, label)], activation="sigmoid", ignore_index=255)
    kept = (label != 255).numpy()
    value, nll = minimum(logits.double().numpy()[kept], label.numpy()[kept], sigmoid=True)
    assert fit.value == pytest.approx(value, rel=1e-6)
    assert fit.nll_after == pytest.approx(nll, rel=1e-12)


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("sign", "bound", "value"), [(1, "lower", 0.05), (-1, "upper", 20.0)])
def test_a_fit_without_end_stops_at_the_bound(size: float, sign: int, bound: str, value: float) -> None:
    # Every pixel right, or every pixel wrong: the best temperature is 0, or infinite.
    label = torch.tensor([[[0, 1, 1], [1, 0, 0]]])
    logits = size * sign * (2.0 * label - 1).unsqueeze(1)
    fit = fit_temperature([(logits, label)], activation="sigmoid")
    assert (fit.value, fit.at_bound) == (value, bound)
    assert fit.nll_after < fit.nll_before
    tighter = fit_temperature([(logits, label)], activation="sigmoid", bounds=(0.5, 3.0))
    assert (tighter.value, tighter.at_bound) == ({"lower": 0.5, "upper": 3.0}[bound], bound)


def test_bounds_without_temperature_one() -> None:
    batches = [sampled(3.0, 4, 30)]
    fit, narrow = fit_temperature(batches), fit_temperature(batches, bounds=(2.0, 5.0))
    assert narrow.value == pytest.approx(fit.value, rel=1e-6)
    assert narrow.nll_before == fit.nll_before


def test_logits_that_say_nothing_keep_their_temperature() -> None:
    fit = fit_temperature([(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2, 0]]))])
    assert fit.value == 1
    assert fit.nll_after == fit.nll_before == pytest.approx(math.log(3))


def test_ignored_pixels_change_nothing() -> None:
    logits, label = sampled(2.0, 4, 20)
    label[0, 3:9] = 255
    kept = label != 255
    expected = fit_temperature([(logits, label)], ignore_index=255)
    changed = torch.where(kept.unsqueeze(1), logits, math.nan)
    assert fit_temperature([(changed, label)], ignore_index=255) == expected
    assert fit_temperature([(changed, torch.where(kept, label, 77), kept)]) == expected


def test_batches_may_be_anything_to_go_through_again() -> None:
    logits, label = sampled(2.0, 4, 20)
    passes = []

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            passes.append(1)
            return zip(logits.split(1), label.split(1), strict=True)

    assert fit_temperature(Loader()).value == pytest.approx(fit_temperature([(logits, label)]).value, rel=1e-9)
    assert len(passes) == 5


@pytest.mark.parametrize(
    ("batches", "options", "words"),
    [
        ([], {}, "batches: found no pixel with a label"),
        ([(torch.zeros(1, 2, 3), torch.full((1, 3), -100))], {}, "batches: found no pixel with a label"),
        (iter([(torch.zeros(1, 2, 3), torch.zeros(1, 3).long())]), {}, "batches: expected .* several times"),
        ([(torch.zeros(1, 2, 3).long(), torch.zeros(1, 3).long())], {}, "batches: expected logits, a float tensor"),
        ([(torch.full((1, 2, 3), math.inf), torch.zeros(1, 3).long())], {}, "batches: expected finite logits"),
        ([], {"bounds": (2.0, 1.0)}, "bounds: expected two positive numbers"),
        ([], {"bounds": (0.0, 1.0)}, "bounds: expected two positive numbers"),
    ],
)
def test_bad_input_is_named(batches: object, options: dict[str, tuple[float, float]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit_temperature(batches, **options)


def test_labels_that_do_not_fit_are_named() -> None:
    logits, label = torch.zeros(1, 2, 3), torch.zeros(1, 3).long()
    with pytest.raises(ValueError, match="ignore_index=7"):
        fit_temperature([(logits, label + 7)])
    with pytest.raises(ValueError, match=r"label: .*\(1, 3\)"):
        fit_temperature([(logits, label[:, :2])])
    with pytest.raises(TypeError, match="mask: expected booleans"):
        fit_temperature([(logits, label, label)])

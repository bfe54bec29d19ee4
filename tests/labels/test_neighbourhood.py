"""`neighbourhood` against its formula, pixel by pixel, and what is left of a label's classes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import oracle
import softjaccard as sj
from softjaccard.metrics import SoftScores

CLASSES = 4


def by_definition(index: Tensor, epsilon: float, side: int, sigma: float, ignored: int) -> np.ndarray:
    """The distribution (B, C, *spatial) of each pixel; zero of those without one."""
    ids, reach = index.numpy().astype(np.int64), side // 2
    steps = [s for s in itertools.product(range(-reach, reach + 1), repeat=ids.ndim - 1) if any(s)]
    say = np.array([math.exp(-sum((d / sigma) ** 2 for d in step) / 2) for step in steps])
    say /= say.sum()
    result = np.zeros((ids.shape[0], CLASSES, *ids.shape[1:]))
    for b, *place in np.ndindex(ids.shape):
        if ids[(b, *place)] == ignored:
            continue
        share = result[(b, slice(None), *place)]
        share[ids[(b, *place)]] += 1 - epsilon
        for step, weight in zip(steps, say, strict=True):
            other = tuple(p + d for p, d in zip(place, step, strict=True))
            inside = all(0 <= p < n for p, n in zip(other, ids.shape[1:], strict=True))
            known = inside and ids[(b, *other)] != ignored
            share[ids[(b, *(other if known else place))]] += epsilon * weight
    return result


def make_index(shape: tuple[int, ...], ignored: int) -> Tensor:
    index = torch.randint(0, CLASSES, shape)
    index[torch.rand(shape) < 0.2] = ignored
    return index


@pytest.mark.parametrize(
    ("epsilon", "side", "sigma"), [(0.5, 3, 1.0), (0.2, 5, 0.7), (0.9, 3, 1e200), (0.0, 3, 0.2), (1.0, 3, 0.4)]
)
@pytest.mark.parametrize("shape", [(3, 11), (2, 6, 7), (2, 4, 5, 3), (1, 1, 9)])
@pytest.mark.parametrize(
    ("ignored", "dtype"), [(-100, torch.int64), (255, torch.uint8), (0, torch.int16), (-100, torch.int8)]
)
def test_shares_are_those_of_the_formula(
    epsilon: float, side: int, sigma: float, shape: tuple[int, ...], ignored: int, dtype: torch.dtype
) -> None:
    index = make_index(shape, ignored).to(dtype)
    label = sj.neighbourhood(index, epsilon, side, sigma)
    value, counted = label.dense(CLASSES, ignored, dtype=torch.float64)
    np.testing.assert_array_equal(counted.numpy(), index.numpy() != ignored)
    expected = by_definition(index, epsilon, side, sigma, ignored)
    oracle.close(torch.where(counted.unsqueeze(1), value, 0.0), expected, 1e-6)


def test_inside_the_image_it_is_svls() -> None:
    """Islam and Glocker: a Gaussian window whose centre weighs as much as all other pixels together."""
    index = torch.randint(0, CLASSES, (2, 9, 8))
    window = torch.exp(-torch.tensor([2.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 2.0]) / 2)
    window[4] = window.sum() - window[4]
    hot = functional.one_hot(index, CLASSES).movedim(-1, 1).float()
    kernel = (window / window.sum()).view(1, 1, 3, 3).expand(CLASSES, 1, 3, 3)
    expected = functional.conv2d(functional.pad(hot, [1] * 4, mode="replicate"), kernel, groups=CLASSES)
    inside = (..., slice(1, -1), slice(1, -1))
    oracle.close(sj.neighbourhood(index).dense(CLASSES)[0][inside], expected[inside], 1e-6)


def test_only_boundaries_become_soft_and_only_with_classes_nearby() -> None:
    index = torch.zeros(1, 12, 12, dtype=torch.int64)
    index[:, 5:, :6], index[:, 9:, 9:] = 1, 3
    value, _ = sj.neighbourhood(index).dense(CLASSES)
    assert torch.equal(value.amax(1) < 1, sj.boundary(index))
    assert torch.equal(value[:, 2], torch.zeros(1, 12, 12))
    assert set(value[0, :, 0, 0].tolist()) == {0.0, 1.0}


def test_losses_take_it_as_the_distribution_that_it_is() -> None:
    index, logits = make_index((2, 9, 10), -100), torch.randn(2, CLASSES, 9, 10)
    label = sj.neighbourhood(index, 0.4)
    for loss in (sj.JaccardLoss(), sj.CrossEntropyLoss()):
        value, mask = label.dense(CLASSES)
        torch.testing.assert_close(loss(logits, label), loss(logits, value, mask))
        assert abs(loss(logits, label) - loss(logits, index)) > 1e-3


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_what_is_ignored_is_ignored_by_the_losses_id(backend: Any) -> None:
    index = make_index((2, 9, 10), 255).to(torch.uint8)
    logits = torch.randn(2, CLASSES, 9, 10).masked_fill((index == 255).unsqueeze(1), float("nan")).requires_grad_()
    value, mask = sj.neighbourhood(index).dense(CLASSES, 255)
    loss = sj.CompoundLoss(sj.JaccardLoss(ignore_index=255, classes="all", backend=backend))
    actual, expected = loss(logits, sj.neighbourhood(index)), loss(logits, value, mask)
    torch.testing.assert_close(actual, expected)
    (slope,) = torch.autograd.grad(actual, logits)
    assert slope.isfinite().all()
    assert not slope.movedim(1, -1)[index == 255].any()


def test_an_invalid_id_is_told_once_for_each_pixel() -> None:
    index = torch.zeros(1, 6, 6, dtype=torch.int64)
    index[0, 2, 2:4] = 7
    with pytest.raises(ValueError, match=r"label: .*found 7 at 2 pixels"):
        sj.JaccardLoss()(torch.randn(1, CLASSES, 6, 6), sj.neighbourhood(index))


def test_compiled_losses_have_the_same_value() -> None:
    index, logits = make_index((2, 9, 10), 255), torch.randn(2, CLASSES, 9, 10)
    loss = sj.JaccardLoss(ignore_index=255)
    compiled = torch.compile(lambda *arguments: loss(arguments[0], sj.neighbourhood(arguments[1])), backend="eager")
    torch.testing.assert_close(compiled(logits, index), loss(logits, sj.neighbourhood(index)))


def test_metrics_take_it() -> None:
    index, logits = make_index((2, 9, 10), 255), torch.randn(2, CLASSES, 9, 10)
    value, mask = sj.neighbourhood(index).dense(CLASSES, 255)
    scores = []
    for label, weight in ((sj.neighbourhood(index), None), (value, mask)):
        metric = SoftScores(CLASSES, from_logits=True, ignore_index=255)
        metric.update(logits, label, mask=weight, image_ids=[0, 1])
        scores.append(metric.compute())
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize(
    ("index", "options", "error", "word"),
    [
        (torch.zeros(1, 3, 3), {}, TypeError, "index"),
        (torch.zeros(3, dtype=torch.int64), {}, ValueError, "index"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), {"epsilon": 1.5}, ValueError, "epsilon"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), {"kernel_size": 1}, ValueError, "kernel_size"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), {"kernel_size": 4}, ValueError, "kernel_size"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), {"kernel_size": 3.0}, ValueError, "kernel_size"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), {"sigma": 0.0}, ValueError, "sigma"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), {"sigma": float("inf")}, ValueError, "sigma"),
    ],
)
def test_bad_input_is_named(index: Tensor, options: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        sj.neighbourhood(index, **options)


def test_a_shape_that_does_not_fit_is_told_as_the_indexs() -> None:
    with pytest.raises(ValueError, match=r"index: expected integers of shape.*got .*\(2, 1, 6, 6\).*squeeze"):
        sj.JaccardLoss()(torch.randn(2, CLASSES, 6, 6), sj.neighbourhood(torch.zeros(2, 1, 6, 6, dtype=torch.int64)))


def test_an_empty_batch_has_an_empty_label() -> None:
    value, mask = sj.neighbourhood(torch.zeros(0, 4, 5, dtype=torch.int64)).dense(CLASSES)
    assert value.shape == (0, CLASSES, 4, 5)
    assert mask.shape == (0, 4, 5)

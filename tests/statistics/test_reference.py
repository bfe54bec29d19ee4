"""`region_statistics` with the reference backend, against the NumPy transcription of the definitions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import oracle
import softjaccard as sj


@pytest.mark.parametrize("gradient", ["exact", "error_scaled"])
@pytest.mark.parametrize(("activation", "classes", "kind", "mask"), oracle.MASKED_GRID)
def test_reference_is_the_table(activation: str | None, classes: int, kind: str, mask: str, gradient: str) -> None:
    temperature = 1.0 if activation is None else 1.7
    case = oracle.make_case(kind, activation, classes, mask=mask, temperature=temperature)
    statistics = case.statistics(backend="reference", gradient=gradient)
    pixels = case.pixels()
    oracle.statistics_close(statistics, oracle.sums(pixels), 1e-10)
    value, upstream = oracle.random_upstream(statistics)
    oracle.close(
        oracle.gradient_of(value, case.logits), oracle.pull_back(pixels, upstream, gradient), 1e-10, "gradient"
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
@pytest.mark.parametrize("size", [(1,), (13,), (1, 1), (5, 8), (3, 2, 7), (2, 3, 2, 2)], ids=str)
def test_any_number_of_spatial_dimensions(size: tuple[int, ...], activation: str | None) -> None:
    case = oracle.make_case("dense", activation, 3, size=size, mask="weights")
    oracle.statistics_close(case.statistics(backend="reference"), oracle.sums(case.pixels()), 1e-10)


def test_the_oracle_gradient_is_the_slope_of_the_oracle_value() -> None:
    case = oracle.make_case("dense", mask="weights", size=(2, 3), batch=2)

    def loss(stats: oracle.Sums) -> Any:
        per, weight = {"image": 0.4, "class": 0.6}, [1.0, 2, 0.5, 0.1, 3]
        region = oracle.tversky(
            stats, alpha=0.3, beta=1.2, form="metric2", per=per, gamma=1.5, log=True, class_weight=weight
        )
        return region + 0.5 * oracle.cross_entropy(stats, class_weight=weight)

    value, slope = oracle.value_and_gradient(loss, case.pixels())
    direction = torch.randn_like(case.logits)
    step = 1e-5
    sides = []
    for sign in (1, -1):
        moved = oracle.Case(case.logits + sign * step * direction, case.label, case.mask, case.options)
        sides.append(oracle.value_and_gradient(loss, moved.pixels())[0])
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx((slope * oracle.array(direction)).sum(), rel=1e-6)
    assert value > 0.1


def test_default_arguments() -> None:
    logits, label = torch.randn(2, 4, 6, 5), torch.randint(0, 4, (2, 6, 5))
    label[0, 0] = -100
    oracle.statistics_close(sj.region_statistics(logits, label), oracle.statistics(logits, label), 1e-5)


@pytest.mark.parametrize("backend", ["reference", "chunked", "auto"])
def test_only_what_is_wanted_is_computed(backend: str) -> None:
    case = oracle.make_case("teacher", mask="weights")
    every = oracle.sums(case.pixels())
    for name in oracle.FIELDS:
        statistics = case.statistics(want={name}, backend=backend)
        oracle.close(getattr(statistics, name), every[name][:, 0] if name == "pixels" else every[name], 1e-10, name)
        assert all(getattr(statistics, other) is None for other in oracle.FIELDS if other != name)
        assert getattr(statistics, name).requires_grad == (name in oracle.DIFFERENTIABLE)
    statistics = case.statistics(want=frozenset({"overlap", "cross_entropy"}), backend=backend)
    assert statistics.overlap is not None
    assert statistics.cross_entropy is not None
    assert statistics.product is None


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
@pytest.mark.parametrize("name", oracle.DIFFERENTIABLE)
def test_gradient_of_each_field_alone(name: str, activation: str | None, backend: str) -> None:
    case = oracle.make_case("dense", activation, 3, mask="weights")
    field = getattr(case.statistics(want={name}, backend=backend), name)
    upstream = torch.randn_like(field)
    expected = oracle.pull_back(case.pixels(), {name: oracle.array(upstream)})
    oracle.close(oracle.gradient_of((field * upstream).sum(), case.logits), expected, 1e-10)


def test_soft_says_whether_the_label_can_be_soft() -> None:
    for kind in ("hard", "dense", "smoothed", "teacher", "raters"):
        assert oracle.make_case(kind).statistics().soft == (kind != "hard")
    assert not oracle.make_case("maps", "sigmoid", 3).statistics().soft
    assert oracle.make_case("hard", "sigmoid", 1).statistics().activation == "sigmoid"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_sums_are_float32_or_float64(dtype: torch.dtype, backend: str) -> None:
    logits, label = torch.randn(2, 3, 5, 5, dtype=dtype), torch.randint(0, 3, (2, 5, 5))
    statistics = sj.region_statistics(logits, label, backend=backend)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(getattr(statistics, name).dtype == expected for name in oracle.FIELDS)


def test_statistics_are_frozen_and_add() -> None:
    case, other = (oracle.make_case("dense", mask="weights", seed=seed) for seed in (1, 2))
    first, second = case.statistics(), other.statistics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.prediction = second.prediction
    mine, theirs = oracle.fields_of(first), oracle.fields_of(second)
    combined, total = oracle.fields_of(first + second), oracle.fields_of(first.total())
    for name in oracle.FIELDS:
        peak = name.endswith("peak")
        oracle.close(
            combined[name],
            torch.tensor(mine[name]).maximum(torch.tensor(theirs[name])) if peak else mine[name] + theirs[name],
            1e-12,
        )
        oracle.close(total[name], mine[name].max(0, keepdims=True) if peak else mine[name].sum(0, keepdims=True), 1e-12)
    assert (first + second).soft
    assert total["prediction"].shape == (1, 5)
    assert total["pixels"].shape == (1,)
    wanted = case.statistics(want={"product"})
    assert (wanted + wanted).overlap is None
    assert wanted.total().label is None


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_reference_gives_second_derivatives_and_gradients_to_label_and_mask(activation: str | None) -> None:
    logits = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = (0.5 + torch.rand(1, 4, dtype=torch.float64)).requires_grad_()

    def run(logits: torch.Tensor, raw: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        label = raw.softmax(1) if activation == "softmax" else raw.sigmoid()
        inputs = logits if activation else logits.sigmoid()
        statistics = sj.region_statistics(inputs, label, mask=mask, activation=activation, backend="reference")
        return tuple(getattr(statistics, name) for name in oracle.FIELDS[:-3])

    assert torch.autograd.gradcheck(run, (logits, raw, mask))
    assert torch.autograd.gradgradcheck(run, (logits, raw, mask))


@pytest.mark.parametrize("backend", ["chunked"])
@pytest.mark.parametrize("which", ["dense", "teacher", "mask"])
def test_chunked_refuses_labels_and_masks_that_require_grad(which: str, backend: str) -> None:
    logits, raw = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    label = {"dense": raw.softmax(1), "teacher": sj.TeacherLabel(raw), "mask": torch.zeros(2, 5, dtype=torch.long)}[
        which
    ]
    mask = torch.rand(2, 5, requires_grad=True) if which == "mask" else None
    with pytest.raises(ValueError, match=f"(?s){'mask' if which == 'mask' else 'label'}.*(reference|detach)"):
        sj.region_statistics(logits, label, mask=mask, backend=backend)
    statistics = sj.region_statistics(logits, label, mask=mask, backend="reference")
    assert statistics.overlap.requires_grad


def test_at_a_tie_the_gradient_of_the_minimum_is_a_half() -> None:
    for backend in ("reference", "chunked"):
        p = torch.tensor([[[0.2, 0.5, 0.9]]], dtype=torch.float64, requires_grad=True)
        y = torch.tensor([[[0.5, 0.5, 0.5]]], dtype=torch.float64)
        statistics = sj.region_statistics(p, y, activation=None, backend=backend)
        assert oracle.gradient_of(statistics.overlap.sum(), p).flatten().tolist() == [1.0, 0.5, 0.0]

"""Sums over pixels add, and pixels that do not count change nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import softjaccard as sj

BACKENDS = ("reference", "chunked")


def pick(label: Any, choose: Any, every: bool = False) -> Any:
    """The label with `choose` applied to its tensors over pixels, or to every tensor."""
    if isinstance(label, Tensor):
        return choose(label)
    parts = {f.name: getattr(label, f.name) for f in dataclasses.fields(label)}
    return type(label)(
        **{n: choose(v) if isinstance(v, Tensor) and (every or n != "weights") else v for n, v in parts.items()}
    )


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, small_tiles: None) -> str:
    """Both backends, chunked in many tiles."""
    return request.param


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["hard", "dense"])
def test_the_parts_of_a_mixed_image_add_up(kind: str, activation: str, backend: str) -> None:
    classes = 5 if activation == "softmax" else 1
    first, second = (oracle.make_case(kind, activation, classes, seed=seed) for seed in (1, 2))
    box = torch.zeros(3, 7, 9, dtype=torch.bool)
    box[0, 2:5, 3:8] = box[1, :, :4] = True
    where = box if kind == "hard" else box[:, None]
    mixed = dataclasses.replace(first, label=torch.where(where, first.label, second.label))
    whole = mixed.statistics(backend=backend)
    parts = [
        sj.region_statistics(first.logits, label, mask=mask, backend=backend, **first.options)
        for label, mask in ((first.label, box), (second.label, ~box))
    ]
    value, upstream = oracle.random_upstream(whole)
    gradient = oracle.gradient_of(value, first.logits)
    together = parts[0] + parts[1]
    oracle.statistics_close(together, oracle.fields_of(whole), 1e-12)
    oracle.close(oracle.gradient_of(oracle.combination(together, upstream), first.logits), gradient, 1e-12)


def test_a_hard_and_a_soft_part_add_up_too(backend: str) -> None:
    case, teacher = oracle.make_case("hard", ignore_index=None), oracle.make_case("teacher")
    box = torch.rand(3, 7, 9) > 0.5
    mixed = torch.where(box[:, None], sj.dense(case.label, 5)[0].double(), teacher.label.logits.softmax(1))
    hard = sj.region_statistics(case.logits, case.label, mask=box, backend=backend)
    soft = sj.region_statistics(case.logits, teacher.label, mask=~box, backend=backend)
    assert not hard.soft
    assert soft.soft
    assert (hard + soft).soft
    assert (soft + hard).soft
    expected = oracle.statistics(case.logits, mixed)
    oracle.statistics_close(hard + soft, expected, 1e-12)


@pytest.mark.parametrize("kind", oracle.SOFTMAX_KINDS)
def test_images_and_micro_batches_add_up(kind: str, backend: str) -> None:
    case = oracle.make_case(kind, mask="weights", batch=4)
    whole = case.statistics(backend=backend)
    one_by_one = []
    for b in range(4):
        label = pick(case.label, lambda t, b=b: t[b : b + 1], every=True)
        part = sj.region_statistics(
            case.logits[b : b + 1], label, mask=case.mask[b : b + 1], want=case.want, backend=backend, **case.options
        )
        one_by_one.append(part)
        for name in case.want:
            oracle.close(getattr(part, name), getattr(whole, name)[b : b + 1], 1e-12, name)
    totals = [part.total() for part in one_by_one]
    total = oracle.fields_of(totals[0] + totals[1] + totals[2] + totals[3])
    for name, value in oracle.fields_of(whole.total()).items():
        oracle.close(total[name], value, 1e-12, name)


@pytest.mark.parametrize(("activation", "classes", "kind", "mask"), oracle.MASKED_GRID)
def test_what_does_not_count_changes_nothing(
    activation: str | None, classes: int, kind: str, mask: str, backend: str
) -> None:
    case = oracle.make_case(kind, activation, classes, mask=mask)
    ignored = torch.tensor(case.pixels().w == 0)
    assert ignored.any() or (mask == "no mask" and kind not in ("hard", "maps"))
    expected = case.statistics(backend=backend)
    value, upstream = oracle.random_upstream(expected)
    slope = oracle.gradient_of(value, case.logits)
    assert (slope[ignored] == 0).all()
    # a softmax over channels reads the teacher's logits of the channels that do not count, too
    whole = kind.startswith("teacher") and activation is None and classes > 1
    spoilt = ignored.all(1, keepdim=True) if whole else ignored
    for poison in (float("nan"), float("inf"), -float("inf"), 1e4):
        logits = torch.where(ignored, poison, case.logits.detach()).requires_grad_()

        def spoil(t: Tensor, poison: float = poison) -> Tensor:
            soft = t.is_floating_point() and t.shape == ignored.shape
            return torch.where(spoilt, torch.tensor(poison, dtype=t.dtype), t) if soft else t

        label = pick(case.label, spoil)
        actual = dataclasses.replace(case, label=label).statistics(logits, backend=backend)
        oracle.statistics_close(actual, oracle.fields_of(expected), 1e-12)
        gradient = oracle.gradient_of(oracle.combination(actual, upstream), logits)
        oracle.close(gradient, slope, 1e-12, f"gradient with {poison}")


def test_labels_outside_the_range_do_not_matter_where_masked(backend: str) -> None:
    logits, mask = torch.randn(1, 3, 4), torch.tensor([[True, True, False, True]])
    hard = torch.tensor([[0, 1, 77, 2]])
    expected = oracle.statistics(logits[:, :, mask[0]], hard[mask][None])
    oracle.statistics_close(sj.region_statistics(logits, hard, mask=mask, backend=backend), expected, 1e-6)
    dense = sj.dense(hard.clamp(max=2), 3)[0].float()
    dense[:, :, 2] = -7
    oracle.statistics_close(sj.region_statistics(logits, dense, mask=mask, backend=backend), expected, 1e-6)


@pytest.mark.parametrize("kind", ["hard", "dense", "smoothed_where", "teacher", "raters"])
def test_the_order_of_pixels_does_not_matter(kind: str, backend: str) -> None:
    case = oracle.make_case(kind, mask="weights")
    order = torch.randperm(63)

    def shuffle(t):
        return t.flatten(-2)[..., order].unflatten(-1, (9, 7))

    moved = oracle.Case(shuffle(case.logits), pick(case.label, shuffle), shuffle(case.mask), case.options)
    oracle.statistics_close(
        moved.statistics(backend=backend), oracle.fields_of(case.statistics(backend=backend)), 1e-12
    )


def test_zero_weight_is_masked_and_weights_scale(backend: str) -> None:
    case = oracle.make_case("teacher", mask="bool")
    expected = oracle.fields_of(case.statistics(backend=backend))
    double = dataclasses.replace(case, mask=case.mask * 2.0).statistics(backend=backend)
    doubled = {n: v if n.endswith("peak") else 2 * v for n, v in expected.items()}
    oracle.statistics_close(double, doubled, 1e-12)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_an_ignored_image_has_zero_sums(activation: str | None, backend: str) -> None:
    case = oracle.make_case("dense", activation, 3)
    mask = torch.ones(3, 7, 9, dtype=torch.bool)
    mask[1] = False
    statistics = dataclasses.replace(case, mask=mask).statistics(backend=backend)
    assert all((getattr(statistics, name)[1] == 0).all() for name in oracle.FIELDS)
    assert all((getattr(statistics, name)[0] != 0).any() for name in oracle.FIELDS)

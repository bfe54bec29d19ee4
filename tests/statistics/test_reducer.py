"""The reducer shared by losses and metrics, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
from softjaccard.statistics.reducer import reduce_classes


@pytest.mark.parametrize("per", ["dataset", "image", "class"])
@given(data=st.data())
def test_reduce_classes_is_the_loop(per: str, data: st.DataObject) -> None:
    images = 1 if per == "dataset" else data.draw(st.integers(1, 4))
    classes = data.draw(st.integers(1, 5))
    entries = images * classes
    values = np.array(data.draw(st.lists(st.floats(-3, 3), min_size=entries, max_size=entries))).reshape(
        images, classes
    )
    active = np.array(data.draw(st.lists(st.booleans(), min_size=entries, max_size=entries))).reshape(images, classes)
    weight = data.draw(st.none() | st.lists(st.floats(0.1, 5), min_size=classes, max_size=classes).map(np.array))
    result = reduce_classes(
        torch.tensor(values), torch.tensor(active), per, None if weight is None else torch.tensor(weight)
    )
    assert result.shape == ()
    assert float(result) == pytest.approx(oracle.reduce_classes(values, active, per, weight), abs=1e-12)


@pytest.mark.parametrize("per", ["dataset", "image", "class"])
def test_nothing_active_is_zero_with_zero_gradients(per: str) -> None:
    values = torch.tensor([[1.0, float("inf"), float("nan")]], requires_grad=True)
    result = reduce_classes(values, torch.zeros(1, 3, dtype=torch.bool), per)
    (gradient,) = torch.autograd.grad(result, values)
    assert result == 0
    assert torch.equal(gradient, torch.zeros(1, 3))


def test_inactive_entries_take_no_part_even_if_not_finite() -> None:
    values = torch.tensor([[1.0, float("nan")], [3.0, float("inf")]], requires_grad=True)
    active = torch.tensor([[True, False], [True, False]])
    for per in ("image", "class"):
        result = reduce_classes(values, active, per)
        (gradient,) = torch.autograd.grad(result, values)
        assert result == 2
        assert gradient.tolist() == [[0.5, 0], [0.5, 0]]


def test_the_three_means_differ() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    active = torch.tensor([[True, True, False], [True, False, False]])
    assert reduce_classes(values, active, "image") == (1.5 + 8) / 2
    assert reduce_classes(values, active, "class") == (4.5 + 2) / 2
    weight = torch.tensor([1.0, 3.0, 100.0])
    assert reduce_classes(values, active, "image", weight) == (1.75 + 8) / 2
    assert reduce_classes(values, active, "class", weight) == (4.5 + 6) / 4

"""`boundary` against its definition with one-hot maps and minimum filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

import softjaccard as sj


def by_definition(index: Tensor, kernel_size: int, ignore_index: int) -> np.ndarray:
    """A pixel is boundary if a one-hot map differs from its minimum filter and no ignored pixel is in its window."""
    labels = index.numpy().astype(np.int64)
    result = np.zeros(labels.shape, dtype=bool)
    pad, window = [(kernel_size // 2,) * 2] * (labels.ndim - 1), (kernel_size,) * (labels.ndim - 1)
    axes = tuple(range(labels.ndim - 1, 2 * (labels.ndim - 1)))
    for b, image in enumerate(labels):
        for c in np.unique(image[image != ignore_index]):
            hot = image == c
            result[b] |= hot != sliding_window_view(np.pad(hot, pad, constant_values=True), window).min(axis=axes)
        ignored = sliding_window_view(np.pad(image == ignore_index, pad, constant_values=False), window).max(axis=axes)
        result[b] &= ~ignored
    return result


def blocks(shape: tuple[int, ...], classes: int = 4, side: int = 3) -> Tensor:
    """Random labels that stay the same over blocks, so that there are boundaries and insides."""
    index = torch.randint(0, classes, shape)
    for axis in range(1, len(shape)):
        index = index.index_select(axis, torch.arange(shape[axis]) // side)
    return index


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(3, 40), (2, 17, 23), (2, 9, 7, 8), (1, 1, 1), (2, 2, 30)])
@pytest.mark.parametrize("ignore_index", [-100, 255, 0])
def test_boundary_is_the_one_hot_definition(shape: tuple[int, ...], kernel_size: int, ignore_index: int) -> None:
    index = blocks(shape)
    index[torch.rand(shape) < 0.03] = ignore_index
    result = sj.boundary(index, kernel_size, ignore_index)
    expected = by_definition(index, kernel_size, ignore_index)
    assert result.dtype == torch.bool
    np.testing.assert_array_equal(result.numpy(), expected)
    if index[0].numel() > 20 and kernel_size > 1:
        assert expected.any()
        assert not expected.all()


def test_boundary_of_a_straight_edge_is_as_deep_as_half_the_kernel_on_both_sides() -> None:
    index = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    assert sj.boundary(index).int().tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]
    assert sj.boundary(index, kernel_size=5).int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]


def test_image_borders_are_no_boundary() -> None:
    assert not sj.boundary(torch.full((2, 5, 6), 3)).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_dtype(dtype: torch.dtype) -> None:
    index = blocks((2, 12, 15))
    index[0, 3:5, 4] = 100
    expected = sj.boundary(index, ignore_index=100)
    assert torch.equal(sj.boundary(index.to(dtype), ignore_index=100), expected)
    assert not torch.equal(sj.boundary(index.to(dtype)), expected)  # 100 counts as a class now


def test_large_ids_keep_apart_and_156_in_uint8_is_not_minus_100() -> None:
    large = torch.tensor([[0, 2**24 - 1, 2**24, 2**24, 2**24]])
    assert sj.boundary(large).int().tolist() == [[1, 1, 1, 0, 0]]
    index = torch.tensor([[3, 3, 3, 156, 156, 156]], dtype=torch.uint8)
    assert sj.boundary(index).int().tolist() == [[0, 0, 1, 1, 0, 0]]


def test_non_contiguous_maps() -> None:
    index = blocks((2, 20, 14))
    assert torch.equal(sj.boundary(index.transpose(1, 2)), sj.boundary(index.transpose(1, 2).contiguous()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 4, 4, dtype=torch.long), 4), r"(?s)kernel_size.*4|4.*kernel_size"),
        ((torch.zeros(1, 4, 4, dtype=torch.long), 0), "kernel_size"),
        ((torch.zeros(1, 4, 4, dtype=torch.long), -3), "kernel_size"),
        ((torch.zeros(1, 4, 4),), r"(?s)index.*float32"),
        ((torch.zeros(4, dtype=torch.long),), "index"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        sj.boundary(*arguments)

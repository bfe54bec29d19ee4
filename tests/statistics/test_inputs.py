"""What `region_statistics` refuses, and what the message says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import softjaccard as sj

LOGITS = torch.zeros(2, 3, 4, 5)
INDEX = torch.zeros(2, 4, 5, dtype=torch.int64)
DENSE = torch.full((2, 3, 4, 5), 1 / 3)
MAPS = torch.zeros(2, 3, 4, 5, dtype=torch.int64)


def changed(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy with another value somewhere in the middle."""
    result = tensor.clone()
    result[1, ..., 1, 2] = value
    return result


def off_sum() -> torch.Tensor:
    """Channels in [0, 1] that sum to 1.2 somewhere."""
    result = DENSE.clone()
    result[1, 2, 1, 1] += 0.2
    return result


BAD: list[tuple[dict[str, Any], list[str]]] = [
    # rank, shape
    ({"logits": torch.zeros(5)}, ["logits", "5"]),
    ({"logits": torch.zeros(2, 3), "label": torch.zeros(2, dtype=torch.long)}, ["logits", "2, 3"]),
    ({"label": INDEX[:, None]}, ["label", "2, 1, 4, 5", "2, 4, 5"]),
    ({"label": INDEX[0]}, ["label", "4, 5", "2, 4, 5"]),
    ({"label": INDEX.mT}, ["label", "2, 5, 4", "2, 4, 5"]),
    ({"label": INDEX[:1]}, ["label", "1, 4, 5", "2, 4, 5"]),
    ({"label": MAPS}, ["label", "2, 3, 4, 5", "int64"]),
    ({"label": INDEX.float()}, ["label", "float32", "2, 4, 5"]),
    ({"label": DENSE[:, :2]}, ["label", "2, 2, 4, 5", "3"]),
    ({"label": DENSE[..., :3]}, ["label", "2, 3, 4, 3", "2, 3, 4, 5"]),
    ({"label": sj.SmoothedLabel(INDEX.mT)}, ["index", "2, 5, 4", "2, 4, 5"]),
    ({"label": sj.TeacherLabel(LOGITS[:, :2])}, ["logits", "2, 2, 4, 5", "3"]),
    ({"label": sj.RaterLabel(INDEX[:, None].mT)}, ["votes", "2, 1, 5, 4", "4, 5"]),
    ({"activation": "sigmoid"}, ["label", "2, 4, 5", "sigmoid", "2, 3, 4, 5"]),
    # dtype, type
    ({"logits": LOGITS.long()}, ["logits", "int64"]),
    ({"logits": [[0.0]]}, ["logits", "list"]),
    ({"label": [[0]]}, ["label", "list"]),
    ({"label": LOGITS.to(torch.complex64)}, ["label", "complex64"]),
    ({"mask": INDEX}, ["mask", "int64", "bool"]),
    ({"mask": [1.0]}, ["mask", "list"]),
    # values
    ({"label": changed(INDEX, 3)}, ["label", "3", "ignore_index"]),
    ({"label": changed(INDEX, 255)}, ["label", "255", "ignore_index"]),
    ({"label": changed(INDEX, -1)}, ["label", "-1", "ignore_index"]),
    ({"label": changed(INDEX, -100), "ignore_index": 255}, ["label", "-100", "ignore_index"]),
    ({"label": changed(INDEX.byte(), 255)}, ["label", "255", "ignore_index"]),
    ({"label": sj.SmoothedLabel(changed(INDEX, 9))}, ["label", "9", "ignore_index"]),
    ({"label": sj.RaterLabel(changed(INDEX[:, None], 9))}, ["label", "9", "ignore_index"]),
    ({"label": changed(MAPS, 2), "activation": "sigmoid"}, ["label", "2", "ignore_index"]),
    ({"label": changed(DENSE, -0.25)}, ["label", "-0.25"]),
    ({"label": changed(DENSE, 1.25)}, ["label", "1.25"]),
    ({"label": changed(DENSE, 1.25), "activation": "sigmoid"}, ["label", "1.25"]),
    ({"label": changed(DENSE, -0.25), "activation": "sigmoid"}, ["label", "-0.25"]),
    ({"label": changed(DENSE, float("nan"))}, ["label"]),
    ({"label": off_sum()}, ["label", "sum", "1.2"]),
    ({"logits": LOGITS + 1.5, "activation": None}, ["logits", "1.5"]),
    ({"logits": LOGITS - 0.5, "activation": None}, ["logits", "-0.5"]),
    # mask
    ({"mask": INDEX.mT.bool()}, ["mask", "2, 5, 4", "2, 4, 5"]),
    ({"mask": MAPS.bool()}, ["mask", "2, 3, 4, 5"]),
    ({"mask": INDEX[:, None].bool()}, ["mask", "2, 1, 4, 5", "2, 4, 5"]),
    ({"mask": MAPS[:, :2].bool(), "label": MAPS, "activation": "sigmoid"}, ["mask", "2, 2, 4, 5"]),
    ({"mask": changed(INDEX.float(), -0.5)}, ["mask", "-0.5"]),
    # options
    ({"ignore_index": None}, ["ignore_index", "None"]),
    ({"activation": "relu"}, ["activation", "relu", "softmax"]),
    ({"logits": LOGITS[:, :1]}, ["softmax", "sigmoid"]),
    ({"temperature": 0.0}, ["temperature", "0"]),
    ({"temperature": -1.0}, ["temperature", "-1"]),
    ({"gradient": "approximate"}, ["gradient", "approximate", "error_scaled"]),
    ({"backend": "fast"}, ["backend", "fast", "chunked"]),
    ({"want": {"overlap", "union"}}, ["want", "union", "overlap"]),
]


@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
@pytest.mark.parametrize(
    ("arguments", "words"), BAD, ids=[f"{i}-{w[0]}-{w[1] if len(w) > 1 else ''}" for i, (_, w) in enumerate(BAD)]
)
def test_bad_input_names_the_argument_what_came_and_what_was_expected(
    arguments: dict, words: list[str], backend: str
) -> None:
    arguments = {"logits": LOGITS, "label": INDEX, "backend": backend} | arguments
    with pytest.raises((TypeError, ValueError)) as error:
        sj.region_statistics(**arguments)
    for word in words:
        assert word in str(error.value), f"{word!r} is missing in: {error.value}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 19, 150, 1000])
def test_softmax_in_any_dtype_is_a_distribution(dtype: torch.dtype, classes: int) -> None:
    label = (3 * torch.randn(1, classes, 8, 8)).to(dtype).softmax(1)
    statistics = sj.region_statistics(torch.randn(1, classes, 8, 8), label)
    assert torch.isfinite(statistics.overlap).all()


def test_probabilities_need_no_sum_without_activation() -> None:
    p, y = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    assert torch.isfinite(sj.region_statistics(p, y, activation=None).overlap).all()
    zero_one = torch.tensor([[[0.0, 1.0]]])
    assert sj.region_statistics(zero_one, zero_one, activation=None).overlap == 1

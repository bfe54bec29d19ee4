"""Every kind of label as a dense one, against the oracle; what a label refuses."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import softjaccard as sj


@pytest.mark.parametrize("size", [(11,), (7, 9), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("ignore_index", [-100, 255])
@pytest.mark.parametrize(
    # maps of one class, and maps without sigmoid, can't be told from class ids with one more dimension
    ("activation", "classes", "kind"),
    [e for e in oracle.GRID if e[2] != "maps" or (e[0] == "sigmoid" and e[1] > 1)],
)
def test_dense_is_the_definition(
    activation: str | None, classes: int, kind: str, ignore_index: int, size: tuple[int, ...]
) -> None:
    case = oracle.make_case(kind, activation, classes, size=size, ignore_index=ignore_index)
    label, mask = sj.dense(case.label, classes, ignore_index, activation=activation)
    expected, counted = oracle.dense_label(case.label, case.logits.shape, ignore_index, activation)
    assert label.shape == case.logits.shape
    assert label.is_floating_point()
    maps = kind.count("maps") > 0
    assert mask.dtype == torch.bool
    assert mask.shape == (case.logits.shape if maps else (len(label), *size))
    mask = mask if maps else mask[:, None].expand_as(label)
    np.testing.assert_array_equal(mask.numpy(), counted)
    oracle.close(label[mask], expected[counted], 1e-6)
    assert ((label[mask] >= 0) & (label[mask] <= 1)).all()
    if not isinstance(case.label, torch.Tensor):
        own, own_mask = case.label.dense(classes, ignore_index, activation=activation)
        assert torch.equal(own, label)
        assert torch.equal(own_mask.expand(own.shape) if maps else own_mask[:, None].expand(own.shape), mask)


def test_the_usual_arguments_of_dense_are_enough() -> None:
    index = torch.tensor([[0, 1, 2, -100]])
    label, mask = sj.SmoothedLabel(index).dense(4)
    assert mask.tolist() == [[True, True, True, False]]
    np.testing.assert_allclose(label[0, :, 1].numpy(), [0.125, 0.625, 0.125, 0.125])
    label, mask = sj.dense(index.to(torch.int16), 3)
    assert label[0, :, :3].tolist() == torch.eye(3).tolist()
    assert mask.tolist() == [[True, True, True, False]]


def test_votes_that_are_ignored_drop_out_and_a_pixel_without_votes_is_ignored() -> None:
    votes = torch.tensor([[[0, 1, -100, -100], [0, 2, 2, -100], [1, 2, -100, -100]]])  # (B = 1, R = 3, 4 pixels)
    label, mask = sj.RaterLabel(votes).dense(3)
    assert mask.tolist() == [[True, True, True, False]]
    np.testing.assert_allclose(label[0, :, :3].numpy(), [[2 / 3, 0, 0], [1 / 3, 1 / 3, 0], [0, 2 / 3, 1]], rtol=1e-6)
    label, _ = sj.RaterLabel(votes, torch.tensor([1.0, 0.0, 3.0])).dense(3)
    np.testing.assert_allclose(label[0, :, :2].numpy(), [[0.25, 0], [0.75, 0.25], [0, 0.75]], rtol=1e-6)
    _, mask = sj.RaterLabel(votes, torch.tensor([1.0, 0.0, 3.0])).dense(3)
    assert mask.tolist() == [[True, True, False, False]]  # the only vote left there weighs nothing


def test_teacher_temperature() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    label, mask = sj.TeacherLabel(logits, temperature=4.0).dense(3, dtype=torch.float64)
    oracle.close(label, (logits / 4).softmax(1), 1e-12)
    assert mask.all()
    label, _ = sj.TeacherLabel(logits).dense(3)
    assert label.dtype == torch.float32  # torch's default, unless said otherwise
    oracle.close(label, logits.softmax(1), 1e-6)


@pytest.mark.parametrize("kind", ["smoothed_where", "teacher_own", "raters_weighted"])
def test_labels_are_frozen_and_can_be_copied_and_saved(kind: str) -> None:
    label = oracle.make_case(kind).label
    field = dataclasses.fields(label)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(label, field, None)
    stream = io.BytesIO()
    torch.save(label, stream)
    stream.seek(0)
    for other in (copy.deepcopy(label), torch.load(stream, weights_only=False)):
        for mine, theirs in zip(label.dense(5), other.dense(5), strict=True):
            assert torch.equal(mine, theirs)


INDEX = torch.zeros(2, 4, 5, dtype=torch.int64)
LOGITS = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sj.SmoothedLabel(INDEX.float()), ["index", "float32"]),
        (lambda: sj.SmoothedLabel(INDEX, -0.1), ["epsilon", "-0.1"]),
        (lambda: sj.SmoothedLabel(INDEX, 1.5), ["epsilon", "1.5"]),
        (lambda: sj.SmoothedLabel(INDEX, 0.5, INDEX), ["where", "int64", "bool"]),
        (lambda: sj.SmoothedLabel(INDEX, 0.5, [True]), ["where", "list", "bool"]),
        (lambda: sj.SmoothedLabel([[0]]), ["index", "list"]),
        (lambda: sj.RaterLabel(INDEX, [1.0, 2.0, 3.0, 4.0]), ["weights", "list"]),
        (lambda: sj.SmoothedLabel(INDEX, 0.5, torch.ones(2, 5, 4, dtype=torch.bool)), ["where", "2, 5, 4", "2, 4, 5"]),
        (lambda: sj.SmoothedLabel(INDEX + 3).dense(3), ["3", "ignore_index"]),
        (lambda: sj.TeacherLabel(INDEX[:, None]), ["logits", "int64"]),
        (lambda: sj.TeacherLabel(LOGITS, temperature=0.0), ["temperature", "0"]),
        (lambda: sj.TeacherLabel(LOGITS, temperature=-2.0), ["temperature", "-2"]),
        (lambda: sj.TeacherLabel(LOGITS).dense(4), ["3", "4"]),
        (lambda: sj.RaterLabel(LOGITS), ["votes", "float32"]),
        (lambda: sj.RaterLabel(INDEX, torch.ones(3)), ["weights", "3", "4"]),
        (lambda: sj.RaterLabel(INDEX, torch.tensor([1.0, 1.0, -1.0, 1.0])).dense(3), ["weights", "-1"]),
        (lambda: sj.RaterLabel(INDEX + 7).dense(3), ["7", "ignore_index"]),
        (lambda: sj.dense(INDEX + 7, 3), ["7", "ignore_index"]),
        (lambda: sj.dense(LOGITS - 0.5, 3), ["label", "-0.5"]),
        (lambda: sj.dense(LOGITS + 0.5, 3), ["label", "1.5", "sum"]),
        (lambda: sj.dense(LOGITS + 0.5, 2), ["label", "2", "3"]),
        (lambda: sj.dense([[0, 1]], 2), ["label", "list"]),
        (lambda: sj.dense(np.zeros((1, 4), dtype=int), 2), ["label", "ndarray"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_names_the_argument_and_what_came(make: Any, words: list[str]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    for word in words:
        assert word in str(error.value), f"{word!r} is missing in: {error.value}"
